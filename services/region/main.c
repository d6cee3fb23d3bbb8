/* tpo-region: a task embedding to a box. */
#include "services/region/rpc.h"

int main(int argc, char **argv)
{
    return tpo_host_main(tpo_region_service(), argc, argv);
}
