#!/bin/sh
# pipeline: tar piped into gzip, over and over, on a tree of small text files.
#
# truth: gzip=90 tar=8
# tolerance: 7
#
# A right profile shows both processes, gzip with most of the time, mostly in its own code (Debian
# strips it: frames are addresses in gzip), and tar with little, mostly in the kernel. The rest is
# this shell and date, between two rounds.
#
# Usage: pipeline.sh [SECONDS]    SECONDS defaults to 5, whole numbers only; the last round ends
# a fraction of a second later
set -eu

seconds=${1:-5}
tree=$(mktemp -d "${TMPDIR:-/tmp}/pipeline.XXXXXX")
trap 'rm -rf "$tree"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# Words by a generator of our own: awk's random numbers differ from one awk to the next.
awk -v tree="$tree" 'BEGIN {
    split("stack frame sample kernel user thread clock page fault symbol map trace", words, " ")
    state = 1
    for (file = 0; file < 400; file++) {
        path = sprintf("%s/%03d.txt", tree, file)
        for (line = 0; line < 40; line++) {
            text = ""
            for (word = 0; word < 8; word++) {
                state = (state * 16807) % 2147483647
                text = text words[state % 12 + 1] state % 997 " "
            }
            print text > path
        }
        close(path)
    }
}'

end=$(($(date +%s%N) + seconds * 1000000000))
while [ "$(date +%s%N)" -lt "$end" ]; do
    tar -cf - -C "$tree" . | gzip -c >/dev/null
done
