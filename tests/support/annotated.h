/* annotated.h -- a small data set of files and what runs that train from it say, for the tests of data from files. Everything lies in the case's own
 * directory; failures abort the case. */
#ifndef TPO_TESTS_ANNOTATED_H
#define TPO_TESTS_ANNOTATED_H

/* The groups of a stage that trains all. */
#define ANNOTATED_ALL "    groups:\n      - {name: all, optimiser: adamw, rate: 1.0e-3, tensors: ['*']}\n"

/* data/: 8 images of 48 * zoom pixels (the model is 48 wide), and 3 films of 6 frames, with all annotation files. */
void annotated_write_as(int zoom);
void annotated_write(void); /* zoom 1 */
void annotated_text(const char *path, const char *text);
/* The number behind `key` in a line. */
double annotated_number(const char *line, const char *key);
/* A run of r.yaml in one process ends with an error that says both. */
void annotated_refused(const char *out, const char *expected, const char *more);

#endif
