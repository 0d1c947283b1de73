#!/bin/sh
# Records the pictures of README.md anew: samples/profiles/*.svg, of workloads of ours alone.
# Usage: samples/pictures.sh BPFLAME    (as root; `make demo` was run before)
set -eu
bpflame=$1
build=samples/build/fp
profiles=samples/profiles

mkdir -p "$profiles"
"$bpflame" offcpu -q -o "$profiles/offcpu.svg" --title "Off-CPU: where threads wait" -- \
	"$build/conserve" 2 >/dev/null
"$bpflame" wakeup -q -o "$profiles/wakeup.svg" --title "Wakeups: who ends the waits of others" -- \
	"$build/convoy" 2 >/dev/null
"$bpflame" chain -q -o "$profiles/chain.svg" -n chain-D \
	--title "Wake chain: D waits for C, C for B, B for A, A for a timer" -- \
	"$build/pipe_chain" 2 >/dev/null
cp demo/offwake.svg "$profiles/offwake.svg"
