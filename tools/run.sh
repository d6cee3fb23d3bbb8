#!/bin/bash
# What `make run` does once everything is built: starts the mesh on the small model, asks it real questions about real files, leaves it up.
set -u
cd "$(dirname "$0")/.."
run=build/run
model=${MODEL:-models/small}
samples=models/small/samples

if [ ! -f "$model/model.safetensors" ]; then
    echo "$model holds no weights: RANDOM WEIGHTS are made instead, and every answer below means nothing"
    build/tpo model random "$model" build/random-model --seed 1 || exit 1
    model=build/random-model
fi
build/tpo up --model "$model" --run-dir "$run" ${UP_FLAGS:-} || exit 1
rest=$(cat $run/http) grpc=$(cat $run/grpc)

failed=0
while IFS=$'\t' read -r kind file sentence; do
    case $kind in ''|'#'*) continue ;; esac
    out=
    [ "$kind" != box ] || out=$run/${file%.*}-$(echo "$sentence" | tr -cs 'A-Za-z' '-' | cut -c1-40).png
    printf '\n%s  "%s"\n  ' "$samples/$file" "$sentence"
    build/tpo ask --gateway "$rest" "$samples/$file" "$sentence" ${out:+--out "$out"} || failed=1
done <$samples/questions.txt

printf '\nREST http://%s\ngRPC %s\n' "$rest" "$grpc"
echo "the mesh stays up: build/tpo ask FILE \"sentence\"; make stop ends it"
exit $failed
