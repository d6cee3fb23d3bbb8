// This file owns the calls into libsentencepiece. No exception leaves it.
#include "nn/tokenizer_sp.h"

#include <sentencepiece_processor.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

struct tpo_sp {
    sentencepiece::SentencePieceProcessor processor;
};

struct tpo_sp *tpo_sp_open(const char *path, char *why, size_t why_size)
{
    try {
        tpo_sp *sp = new tpo_sp;
        const auto status = sp->processor.Load(path);
        if (status.ok()) return sp;
        snprintf(why, why_size, "%s", status.message());
        delete sp;
    } catch (const std::exception &e) {
        snprintf(why, why_size, "%s", e.what());
    }
    return nullptr;
}

void tpo_sp_close(struct tpo_sp *sp)
{
    delete sp;
}

int tpo_sp_size(const struct tpo_sp *sp)
{
    return sp->processor.GetPieceSize();
}

int tpo_sp_encode(const struct tpo_sp *sp, const char *text, size_t n, int32_t *ids, int32_t *ends, int capacity)
{
    try {
        const auto found = sp->processor.EncodeAsImmutableProto(absl::string_view(text, n));
        const int count = (int)found.pieces_size();
        for (int i = 0; i < count && i < capacity; i++) {
            ids[i] = (int32_t)found.pieces(i).id();
            ends[i] = (int32_t)found.pieces(i).end();
        }
        return count;
    } catch (const std::exception &) {
        return -1;
    }
}

char *tpo_sp_decode(const struct tpo_sp *sp, const int32_t *ids, int n)
{
    try {
        for (int i = 0; i < n; i++)
            if (ids[i] < 0 || ids[i] >= sp->processor.GetPieceSize()) return nullptr;
        std::string text;
        if (!sp->processor.Decode(std::vector<int>(ids, ids + n), &text).ok()) return nullptr;
        char *copy = (char *)malloc(text.size() + 1);
        if (copy != nullptr) memcpy(copy, text.c_str(), text.size() + 1);
        return copy;
    } catch (const std::exception &) {
        return nullptr;
    }
}

enum tpo_sp_kind tpo_sp_kind(const struct tpo_sp *sp, int32_t id)
{
    if (sp->processor.IsUnknown(id)) return TPO_SP_UNKNOWN;
    if (sp->processor.IsControl(id)) return TPO_SP_CONTROL;
    return sp->processor.IsByte(id) ? TPO_SP_BYTE : TPO_SP_TEXT;
}

const char *tpo_sp_piece(const struct tpo_sp *sp, int32_t id)
{
    return sp->processor.IdToPiece(id).c_str();
}
