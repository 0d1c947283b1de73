#!/bin/sh
# Records workloads whose shares are known, and draws them: demo/cpu.svg and demo/cpu.folded.
# Usage: samples/demo.sh BPFLAME    (as root; the workloads are built already)
set -eu
bpflame=$1
build=samples/build/fp

"$bpflame" cpu -F 499 -o demo/cpu.bpflame --title "Three workloads of known shares" -- \
	sh -c "$build/three_paths 5 & $build/virtual_calls 5 & $build/syscalls 5 & wait"
"$bpflame" render -q demo/cpu.bpflame -o demo/cpu.folded
"$bpflame" render -q demo/cpu.bpflame -o demo/cpu.svg

awk '
	{ count = $NF; sub(/ [0-9]+$/, "") }
	/^three_paths;/ {
		total += count
		for (i in share) if (index($0, ";" i ";")) seen[i] += count
	}
	BEGIN { share["path_sixty"] = 60; share["path_thirty"] = 30; share["path_ten"] = 10 }
	END {
		print "three_paths     true  measured"
		n = split("path_sixty path_thirty path_ten", order)
		for (i = 1; i <= n; i++)
			printf "  %-12s %4d %%    %5.1f %%\n", order[i], share[order[i]], \
				100 * seen[order[i]] / total
	}' demo/cpu.folded
echo "wrote demo/cpu.svg (open it in a browser) and demo/cpu.folded"
