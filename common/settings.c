/* This file owns the reading of settings: presets, then the environment, then flags. */
#include "common/settings.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/log.h"

static int n_rows(const struct tpo_settings *s)
{
    return s->n_rows + s->n_more;
}

static const struct tpo_setting *row_at(const struct tpo_settings *s, int i)
{
    return i < s->n_rows ? &s->rows[i] : &s->more[i - s->n_rows];
}

static const struct tpo_setting *row_named(const struct tpo_settings *s, const char *name, size_t n)
{
    for (int i = 0; i < n_rows(s); i++)
        if (strlen(row_at(s, i)->name) == n && memcmp(row_at(s, i)->name, name, n) == 0) return row_at(s, i);
    return NULL;
}

static void environment_name(char *out, size_t size, const char *name)
{
    size_t n = (size_t)snprintf(out, size, "TPO_");
    for (; *name != '\0' && n + 1 < size; name++) out[n++] = *name == '-' ? '_' : (char)toupper((unsigned char)*name);
    out[n] = '\0';
}

/* --- one value ---------------------------------------------------------------------------------------------------------------------------- */

struct unit {
    const char *name;
    double factor;
};
static const struct unit no_units[] = {{"", 1}, {NULL, 0}};
static const struct unit byte_units[] = {{"", 1},  {"K", 1024.0}, {"M", 1048576.0}, {"G", 1073741824.0}, {"T", 1099511627776.0},
                                         {NULL, 0}};
static const struct unit ms_units[] = {{"", 1}, {"ms", 1}, {"s", 1000}, {"m", 60000}, {"h", 3600000}, {NULL, 0}};

/* NULL, or what is wrong with the text. */
static const char *parse_number(const struct tpo_setting *row, const char *text, double *value)
{
    const struct unit *units = row->type == TPO_SET_BYTES ? byte_units : row->type == TPO_SET_MS ? ms_units : no_units;
    char *end;
    errno = 0;
    *value = strtod(text, &end);
    if (end == text || errno != 0 || !isfinite(*value)) return "is not a number";
    while (units->name != NULL && strcmp(units->name, end) != 0) units++;
    if (units->name == NULL)
        return row->type == TPO_SET_BYTES ? "takes K, M, G or T after the number"
               : row->type == TPO_SET_MS  ? "takes ms, s, m or h after the number"
                                          : "is not a number";
    *value *= units->factor;
    if (row->type != TPO_SET_REAL && *value != floor(*value)) return "must be a whole number";
    return NULL;
}

static int parse_bool(const char *text)
{
    static const char *const words[][2] = {{"no", "yes"}, {"false", "true"}, {"off", "on"}, {"0", "1"}};
    for (size_t i = 0; i < sizeof(words) / sizeof(words[0]); i++)
        for (int v = 0; v < 2; v++)
            if (strcasecmp(text, words[i][v]) == 0) return v;
    return -1;
}

static bool among(const char *choices, const char *text)
{
    size_t n = strlen(text);
    for (const char *p = choices; n > 0; p++) {
        size_t length = strcspn(p, "|");
        if (length == n && memcmp(p, text, n) == 0) return true;
        p += length;
        if (*p == '\0') break;
    }
    return false;
}

static int refuse(struct tpo_error *err, const struct tpo_setting *row, const char *from, const char *text, const char *why)
{
    char name[80];
    if (from != NULL)
        environment_name(name, sizeof(name), row->name);
    else
        snprintf(name, sizeof(name), "--%s", row->name);
    return tpo_fail(err, TPO_INVALID_ARGUMENT, "setting", "%s %s: %s", name, row->secret ? "***" : text, why);
}

static int set_number(const struct tpo_setting *row, const char *text, const char *from, struct tpo_error *err)
{
    double value;
    char bounds[96];
    const char *wrong = parse_number(row, text, &value);
    if (wrong != NULL) return refuse(err, row, from, text, wrong);
    if ((row->min != 0 || row->max != 0) && (value < row->min || value > row->max)) {
        snprintf(bounds, sizeof(bounds), "must be %.15g .. %.15g", row->min, row->max);
        return refuse(err, row, from, text, bounds);
    }
    if (fabs(value) > 9e18) return refuse(err, row, from, text, "is too large");
    if (row->type == TPO_SET_REAL)
        *(double *)row->value = value;
    else
        *(int64_t *)row->value = (int64_t)value;
    return TPO_OK;
}

static int set_value(const struct tpo_setting *row, const char *text, const char *from, struct tpo_error *err)
{
    struct tpo_setting_list *list = row->value;
    int yes;
    switch (row->type) {
    case TPO_SET_TEXT:
        if (row->choices != NULL && !among(row->choices, text)) {
            char why[128];
            snprintf(why, sizeof(why), "must be one of %s", row->choices);
            return refuse(err, row, from, text, why);
        }
        *(const char **)row->value = text;
        return TPO_OK;
    case TPO_SET_BOOL:
        yes = parse_bool(text);
        if (yes < 0) return refuse(err, row, from, text, "must be yes or no");
        *(bool *)row->value = yes;
        return TPO_OK;
    case TPO_SET_LIST:
        if (list->n == TPO_SETTING_LIST_MAX) return refuse(err, row, from, text, "is given too often");
        list->items[list->n++] = text;
        return TPO_OK;
    default:
        return set_number(row, text, from, err);
    }
}

static void clear_value(const struct tpo_setting *row)
{
    switch (row->type) {
    case TPO_SET_TEXT:
        *(const char **)row->value = "";
        break;
    case TPO_SET_BOOL:
        *(bool *)row->value = false;
        break;
    case TPO_SET_REAL:
        *(double *)row->value = 0;
        break;
    case TPO_SET_LIST:
        ((struct tpo_setting_list *)row->value)->n = 0;
        break;
    default:
        *(int64_t *)row->value = 0;
    }
}

/* --- where values come from ----------------------------------------------------------------------------------------------------------------- */

/* What list_split made is pointed to for as long as the process lives; the list lets a leak checker see that. */
struct kept {
    struct kept *next;
    char text[];
};
static struct kept *kept_texts;

/* Splits "a;b;c" in place of a copy that is never freed (settings live as long as the process). Empty items are dropped; at most max. */
static int list_split(const char *text, const char **items, int max)
{
    size_t size = strlen(text) + 1;
    struct kept *k = malloc(sizeof(*k) + size);
    int n = 0;
    if (k == NULL) return 0;
    memcpy(k->text, text, size);
    k->next = kept_texts;
    kept_texts = k;
    for (char *at = k->text; at != NULL && n < max;) {
        char *end = strchr(at, ';');
        if (end != NULL) *end = '\0';
        if (at[0] != '\0') items[n++] = at;
        at = end != NULL ? end + 1 : NULL;
    }
    return n;
}

static int read_list(const struct tpo_setting *row, const char *text, const char *from, struct tpo_error *err)
{
    const char *items[TPO_SETTING_LIST_MAX];
    int n = list_split(text, items, TPO_SETTING_LIST_MAX), rc = TPO_OK;
    clear_value(row);
    for (int i = 0; i < n && rc == TPO_OK; i++) rc = set_value(row, items[i], from, err);
    return rc;
}

static int read_presets(const struct tpo_settings *s, struct tpo_error *err)
{
    int rc = TPO_OK;
    for (int i = 0; i < n_rows(s) && rc == TPO_OK; i++) {
        const struct tpo_setting *row = row_at(s, i);
        clear_value(row);
        if (row->preset != NULL && row->preset[0] != '\0')
            rc = row->type == TPO_SET_LIST ? read_list(row, row->preset, NULL, err) : set_value(row, row->preset, NULL, err);
    }
    return rc;
}

static int read_environment(const struct tpo_settings *s, struct tpo_error *err)
{
    char name[80];
    int rc = TPO_OK;
    for (int i = 0; i < n_rows(s) && rc == TPO_OK; i++) {
        const struct tpo_setting *row = row_at(s, i);
        environment_name(name, sizeof(name), row->name);
        const char *text = getenv(name);
        if (text == NULL || text[0] == '\0') continue;
        rc = row->type == TPO_SET_LIST ? read_list(row, text, name, err) : set_value(row, text, name, err);
    }
    return rc;
}

/* Levenshtein's distance, for a nearest neighbour; names are short. */
static int distance(const char *a, const char *b)
{
    int row[64], n = (int)strlen(b);
    if (n >= 64) return 99;
    for (int j = 0; j <= n; j++) row[j] = j;
    for (int i = 1; a[i - 1] != '\0'; i++) {
        int diagonal = row[0];
        row[0] = i;
        for (int j = 1; j <= n; j++) {
            int cost = diagonal + (a[i - 1] != b[j - 1]);
            diagonal = row[j];
            if (row[j] + 1 < cost) cost = row[j] + 1;
            if (row[j - 1] + 1 < cost) cost = row[j - 1] + 1;
            row[j] = cost;
        }
    }
    return row[n];
}

static int unknown(const struct tpo_settings *s, const char *name, struct tpo_error *err)
{
    const char *nearest = NULL;
    int least = 4;
    for (int i = 0; i < n_rows(s); i++) {
        int d = distance(name, row_at(s, i)->name);
        if (d < least) least = d, nearest = row_at(s, i)->name;
    }
    if (nearest == NULL) return tpo_fail(err, TPO_INVALID_ARGUMENT, "setting", "--%s: no such flag; --help lists them", name);
    return tpo_fail(err, TPO_INVALID_ARGUMENT, "setting", "--%s: no such flag; did you mean --%s?", name, nearest);
}

/* argv[*i] is a flag; moves *i past its value. `seen` tells which lists the command line has begun. */
static int read_flag(const struct tpo_settings *s, int argc, char **argv, int *i, bool *seen, struct tpo_error *err)
{
    const char *name = argv[*i] + 2, *value = strchr(name, '=');
    size_t n = value != NULL ? (size_t)(value - name) : strlen(name);
    const struct tpo_setting *row = row_named(s, name, n);
    if (row == NULL && n > 3 && strncmp(name, "no-", 3) == 0 && value == NULL) {
        row = row_named(s, name + 3, n - 3);
        if (row != NULL && row->type == TPO_SET_BOOL) return set_value(row, "no", NULL, err);
        row = NULL;
    }
    if (row == NULL) return unknown(s, name, err);
    if (value != NULL)
        value++;
    else if (row->type == TPO_SET_BOOL)
        value = "yes";
    else if (*i + 1 < argc)
        value = argv[++*i];
    else
        return tpo_fail(err, TPO_INVALID_ARGUMENT, "setting", "--%s needs a value", row->name);
    if (row->type == TPO_SET_LIST) {
        int at = 0;
        while (row_at(s, at) != row) at++;
        if (!seen[at]) clear_value(row); /* the flags replace what the environment said */
        seen[at] = true;
    }
    return set_value(row, value, NULL, err);
}

int tpo_settings_read(const struct tpo_settings *s, int *argc, char **argv, struct tpo_error *err)
{
    bool flags = true, *seen = calloc((size_t)n_rows(s) + 1, sizeof(*seen));
    int kept = 1;
    if (seen == NULL) return tpo_fail(err, TPO_ENOMEM, "memory", "no memory for settings");
    int rc = read_presets(s, err);
    if (rc == TPO_OK) rc = read_environment(s, err);
    for (int i = 1; i < *argc && rc == TPO_OK; i++) {
        if (flags && strcmp(argv[i], "--") == 0)
            flags = false;
        else if (flags && strcmp(argv[i], "--help") == 0) {
            tpo_settings_help(s, stdout);
            rc = tpo_fail(err, TPO_CANCELLED, "help", "help was asked for");
        } else if (flags && strncmp(argv[i], "--", 2) == 0)
            rc = read_flag(s, *argc, argv, &i, seen, err);
        else if (flags && argv[i][0] == '-' && argv[i][1] != '\0')
            rc = tpo_fail(err, TPO_INVALID_ARGUMENT, "setting", "%s: flags have two dashes; --help lists them", argv[i]);
        else
            argv[kept++] = argv[i];
    }
    free(seen);
    if (rc == TPO_OK && s->arguments == NULL && kept > 1)
        rc = tpo_fail(err, TPO_INVALID_ARGUMENT, "setting", "%s: %s takes no arguments beside flags", argv[1], s->program);
    *argc = kept;
    return rc;
}

/* --- telling ---------------------------------------------------------------------------------------------------------------------------------- */

static void print_wrapped(FILE *out, const char *text, int indent, int column)
{
    while (*text != '\0') {
        size_t n = strcspn(text, " \n");
        if (column + (int)n > 100 && column > indent) {
            fprintf(out, "\n%*s", indent, "");
            column = indent;
        }
        fprintf(out, "%.*s ", (int)n, text);
        column += (int)n + 1;
        text += n;
        while (*text == ' ' || *text == '\n') text++;
    }
    fputc('\n', out);
}

static const char *value_word(const struct tpo_setting *row)
{
    if (row->what != NULL) return row->what;
    if (row->choices != NULL) return row->choices;
    switch (row->type) {
    case TPO_SET_INT:
        return "N";
    case TPO_SET_REAL:
        return "X";
    case TPO_SET_BYTES:
        return "BYTES";
    case TPO_SET_MS:
        return "TIME";
    default:
        return "TEXT";
    }
}

void tpo_settings_help(const struct tpo_settings *s, FILE *out)
{
    fprintf(out, "usage: %s%s%s%s\n\n", s->program, n_rows(s) > 0 ? " [flags]" : "", s->arguments != NULL ? " " : "",
            s->arguments != NULL ? s->arguments : "");
    print_wrapped(out, s->about, 0, 0);
    if (n_rows(s) > 0) fprintf(out, "\nflags (each is also read from the environment: --kv-bytes is TPO_KV_BYTES; a flag wins):\n");
    for (int i = 0; i < n_rows(s); i++) {
        const struct tpo_setting *row = row_at(s, i);
        int n = row->type == TPO_SET_BOOL ? fprintf(out, "  --[no-]%s", row->name)
                                          : fprintf(out, "  --%s %s", row->name, value_word(row));
        if (n > 28)
            fprintf(out, "\n%*s", 30, "");
        else
            fprintf(out, "%*s", 30 - n, "");
        char help[1024];
        bool has = row->preset != NULL && row->preset[0] != '\0';
        snprintf(help, sizeof(help), "%s%s%s%s%s", row->help, has ? " (default " : "", has ? row->preset : "", has ? ")" : "",
                 row->type == TPO_SET_LIST ? "; may be repeated" : "");
        print_wrapped(out, help, 30, 30);
    }
    if (s->examples == NULL) return;
    fprintf(out, "\nexamples:\n");
    for (const char *line = s->examples; *line != '\0';) {
        size_t n = strcspn(line, "\n");
        fprintf(out, "  %.*s\n", (int)n, line);
        line += n + (line[n] == '\n');
    }
}

static void value_text(char *out, size_t size, const struct tpo_setting *row)
{
    const struct tpo_setting_list *list = row->value;
    size_t used = 0;
    switch (row->type) {
    case TPO_SET_TEXT:
        snprintf(out, size, "%s", *(const char *const *)row->value);
        break;
    case TPO_SET_BOOL:
        snprintf(out, size, "%s", *(const bool *)row->value ? "yes" : "no");
        break;
    case TPO_SET_REAL:
        snprintf(out, size, "%g", *(const double *)row->value);
        break;
    case TPO_SET_LIST:
        out[0] = '\0';
        for (int i = 0; i < list->n && used < size; i++)
            used += (size_t)snprintf(out + used, size - used, "%s%s", i > 0 ? ";" : "", list->items[i]);
        break;
    default:
        snprintf(out, size, "%lld", (long long)*(const int64_t *)row->value);
    }
}

void tpo_settings_log(const struct tpo_settings *s)
{
    for (int i = 0; i < n_rows(s); i++) {
        const struct tpo_setting *row = row_at(s, i);
        char value[256], quoted[300];
        value_text(value, sizeof(value), row);
        bool preset = row->preset != NULL && strcmp(value, row->preset) == 0;
        tpo_log(TPO_LOG_INFO, "setting", "name=%s value=%s%s", row->name,
                row->secret ? "***" : tpo_log_quote(quoted, sizeof(quoted), value), preset ? " default=yes" : "");
    }
}
