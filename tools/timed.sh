#!/bin/sh
# timed.sh NAME COMMAND...: run the command, say how long it took, and note it in build/times.txt.
name=$1
shift
echo "== $name"
start=$(date +%s)
"$@"
status=$?
mkdir -p build
printf '%-12s %5d s\n' "$name" $(($(date +%s) - start)) | tee -a build/times.txt
exit $status
