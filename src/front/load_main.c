/*
 * load_main.c: the program devkvm-load; all it does is in the preloaded library (static_load.c).
 */
#include "exec.h"

int main(int argc, char **argv, char **envp)
{
	return devkvm_load(argc, argv, envp);
}
