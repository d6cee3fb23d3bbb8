#!/bin/sh
# Makes tokenizer.model anew: the world writes its sentences, Debian's spm_train (package sentencepiece) learns their pieces.
# Every word of the world, every letter of a choice and every tag of a prompt becomes one piece; tests/trainer/world/test_words.c says so.
set -e
cd "$(dirname "$0")"
here=${1:-$PWD}
# Other pieces have other ids, so weights fit only the tokenizer they were trained with.
if [ -e "$here/model.safetensors" ]; then
    echo "$here holds weights that were trained with its tokenizer; name an empty folder: tokenizer.sh DIR" >&2
    exit 1
fi
trainer=$(realpath "${TPO_BUILD:-../../build}")/tpo-trainer
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work" # the model holds the path of its input: without a folder it is the same every time
"$trainer" world --corpus corpus.txt
# The tags and letters carry SentencePiece's mark of a space (U+2581), so that a tag costs one piece and not two.
spm_train --input=corpus.txt --model_prefix=tokenizer --model_type=bpe --vocab_size=737 --byte_fallback=true \
    --normalization_rule_name=identity --add_dummy_prefix=true --remove_extra_whitespaces=false --character_coverage=1.0 \
    --num_threads=1 --unk_id=0 --bos_id=1 --eos_id=2 --pad_id=-1 \
    --user_defined_symbols='▁[INST],▁[/INST],[/INST],▁<Video>,▁</Video>,▁<Image>,▁</Image>,▁(A),▁(B),▁(C),▁(D)' 2>log ||
    { cat log >&2; exit 1; }
mv tokenizer.model "$here/tokenizer.model"
echo "tokenizer.model: $(wc -c <"$here/tokenizer.model") bytes"
