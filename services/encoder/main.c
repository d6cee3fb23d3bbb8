/* tpo-encoder: frames to visual tokens. */
#include "services/encoder/rpc.h"

int main(int argc, char **argv)
{
    return tpo_host_main(tpo_encoder_service(), argc, argv);
}
