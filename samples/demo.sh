#!/bin/sh
# Records workloads whose shares are known, and draws them: demo/cpu.svg and demo/cpu.folded. Then
# the classic pair of a pipe, tar | gzip, in the four ways to look at waits.
# Usage: samples/demo.sh BPFLAME    (as root; the workloads are built already)
set -eu
bpflame=$1
build=samples/build/fp

# Many small files, at which tar is the slower of the two, and large ones, at which gzip is. No disk
# shall decide the picture: all of it is in memory.
data=$(mktemp -d)
trap 'rm -rf "$data"' EXIT
mkdir "$data/small" "$data/large"
i=0
while [ $i -lt 20000 ]; do
	: >"$data/small/$i"
	i=$((i + 1))
done
for i in 1 2; do
	cat "$build"/* "$build"/* >"$data/large/$i"
done
pipeline="tar cf - -C $data small large | gzip -1 >/dev/null"

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

for question in offcpu wakeup offwake chain; do
	"$bpflame" "$question" -q -o "demo/$question.svg" --title "tar | gzip: $question" -- \
		sh -c "$pipeline"
done
"$bpflame" offwake -q -o demo/offwake.folded -- sh -c "$pipeline"

awk '
	{ ns = $NF; sub(/ [0-9]+$/, ""); split($0, side, ";--;") }
	$0 ~ /^tar;/ && side[1] ~ /pipe_write/ && side[2] ~ /pipe_read.*;gzip_\[w\]/ { tar += ns }
	$0 ~ /^gzip;/ && side[1] ~ /pipe_read/ && side[2] ~ /pipe_write.*;tar_\[w\]/ { gzip += ns }
	END {
		print "tar | gzip                                        seconds"
		printf "  tar waits in a pipe write for gzip to read      %6.3f\n", tar / 1e9
		printf "  gzip waits in a pipe read for tar to write      %6.3f\n", gzip / 1e9
	}' demo/offwake.folded
echo "wrote demo/cpu.svg, offcpu.svg, wakeup.svg, offwake.svg, chain.svg (open them in a browser)," \
	"cpu.folded, offwake.folded"
