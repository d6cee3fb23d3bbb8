/* tpo-router: text and visual tokens to text and task embeddings. */
#include "services/router/rpc.h"

int main(int argc, char **argv)
{
    return tpo_host_main(tpo_router_service(), argc, argv);
}
