#!/bin/bash
# `make run` as a newcomer would try it: it ends though the mesh stays up, answers with text and boxes, knows the second time that it runs, and stops.
set -u
cd "$(dirname "$0")/.."
passed=0 failed=0
check() {
    local what=$1
    shift
    if "$@"; then passed=$((passed + 1)); else echo "FAILED $what"; failed=$((failed + 1)); fi
}
log=$(mktemp)
make stop >/dev/null 2>&1
timeout 600 make run 2>&1 | cat >"$log"
check 'make run exits 0' test "${PIPESTATUS[0]}" -eq 0
cat "$log"
check 'the trained model answers' bash -c "! grep -q RANDOM '$log'"
check 'three boxes' test "$(grep -c '^ *box ' "$log")" -eq 3
check 'three pictures' test "$(ls build/run/*.png 2>/dev/null | wc -l)" -eq 3
check 'a cache hit' grep -q 'cache hit' "$log"
rest=$(cat build/run/http)
check 'healthz' curl -sf "http://$rest/healthz" -o /dev/null
check 'readyz' curl -sf "http://$rest/readyz" -o /dev/null
check 'metrics' bash -c "curl -sf http://$rest/metrics | grep -q tpo_requests_total"
check 'a second make run says so' bash -c 'make run 2>&1 | grep -q "running already"'
check 'chat' bash -c "printf 'Describe the picture.\nHow many crosses are there?\n' | build/tpo chat models/small/samples/crowd.png | grep -q 'total'"
check 'a file that is none is refused' bash -c '! build/tpo ask tools/run.sh "What is this?" 2>/dev/null'
check 'make stop' make stop
check 'nothing is left' bash -c '! curl -sf --max-time 2 http://'"$rest"'/healthz'
rm -f "$log"
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
