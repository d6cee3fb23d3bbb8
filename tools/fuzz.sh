#!/bin/sh
# Runs each fuzzer for some seconds in a directory of its own; `N passed, N failed` last.
#   tools/fuzz.sh SECONDS FUZZER...
set -u
export TPO_SOURCE="${TPO_SOURCE:-$PWD}"
seconds=$1 passed=0 failed=0
shift
for fuzzer in "$@"; do
    [ -x "$fuzzer" ] || continue
    fuzzer=$(realpath "$fuzzer")
    corpus=$(realpath -e "tests/fuzz/corpus/$(basename "$fuzzer")" 2>/dev/null || true)
    dir=$(mktemp -d)
    if (cd "$dir" && mkdir new && "$fuzzer" -max_total_time="$seconds" -timeout=20 -rss_limit_mb=2048 -print_final_stats=1 new ${corpus:+"$corpus"} >log 2>&1); then
        echo "ok     $(basename "$fuzzer") $(grep -o 'number_of_executed_units: .*' "$dir/log")"
        passed=$((passed + 1))
    else
        echo "FAILED $(basename "$fuzzer")"
        tail -n 40 "$dir/log"
        failed=$((failed + 1))
    fi
    rm -rf "$dir"
done
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
