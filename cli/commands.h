/* commands.h -- the subcommands of `tpo`. Each reads its own flags and returns its exit status: 0 done, 1 the mesh said no, 2 wrong usage. */
#ifndef TPO_CLI_COMMANDS_H
#define TPO_CLI_COMMANDS_H

int tpo_cmd_up(int argc, char **argv);
int tpo_cmd_down(int argc, char **argv);
int tpo_cmd_ask(int argc, char **argv);
int tpo_cmd_chat(int argc, char **argv);
/* world, train, eval, model: becomes tpo-trainer with the same arguments; returns only when that program is not there. */
int tpo_cmd_trainer(int argc, char **argv);

#endif
