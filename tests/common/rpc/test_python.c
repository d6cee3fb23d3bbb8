/* Another implementation's client (Python's grpcio) against our server: all four call kinds, health, errors, what is refused. */
#include <spawn.h>
#include <sys/wait.h>

#include "tests/common/rpc/echo.h"

extern char **environ;

static const char script[] =
    "import struct, sys, grpc\n"
    "import common_pb2, encoder_pb2, health_pb2, media_pb2, router_pb2\n"
    "ch = grpc.insecure_channel(sys.argv[1], options=[('grpc.enable_http_proxy', 0)])\n"
    "def fails(code, call, *args, **kw):\n"
    "    try: call(*args, timeout=kw.pop('timeout', 20), **kw)\n"
    "    except grpc.RpcError as e:\n"
    "        assert e.code() == code, (e.code(), e.details())\n"
    "        return e\n"
    "    raise AssertionError('no error')\n"
    "S = grpc.StatusCode\n"
    "Q, R = encoder_pb2.EncodeRequest, encoder_pb2.EncodeReply\n"
    "encode = ch.unary_unary('/tpo.v1.Encoder/Encode', Q.SerializeToString, R.FromString)\n"
    "r = encode(Q(media_id='hello'), timeout=20)\n"
    "assert r.digest == 'hello' and list(r.visual.shape) == [96, 768] and len(r.visual.data) == 96 * 768 * 4\n"
    "assert struct.unpack('<f', r.visual.data[20:24])[0] == 5.0\n"
    "r = encode(Q(media_id='request-id'), timeout=20, metadata=[('tpo-request-id', 'abc-1')])\n"
    "assert r.digest == 'abc-1'\n"
    "r = encode(Q(media_id='request-id'), timeout=20, metadata=[('tpo-request-id', 'a b level=error')])\n"
    "assert r.digest == '-'\n"
    "e = fails(S.FAILED_PRECONDITION, encode, Q(media_id='fail'))\n"
    "details = dict(e.trailing_metadata())['grpc-status-details-bin']\n"
    "assert b'media_missing' in details and b'decoder' in details and b'RetryInfo' in details\n"
    "fails(S.DEADLINE_EXCEEDED, encode, Q(media_id='hang'), timeout=0.2)\n"
    "fails(S.UNIMPLEMENTED, ch.unary_unary('/tpo.v1.Encoder/Nothing', None, None), b'')\n"
    "raw = ch.unary_unary('/tpo.v1.Encoder/Encode', None, None)\n"
    "for bad in (b'\\x0a\\x02\\xff\\xfe', b'\\x0a\\x03a\\x00b', b'\\x0a\\x7f', b'\\x0b'):\n"
    "    fails(S.INVALID_ARGUMENT, raw, bad)\n"
    "fails(S.UNIMPLEMENTED, encode, Q(media_id='x' * 100000), compression=grpc.Compression.Gzip)\n"
    "G, E = router_pb2.GenerateRequest, router_pb2.GenerateEvent\n"
    "generate = ch.unary_stream('/tpo.v1.Router/Generate', G.SerializeToString, E.FromString)\n"
    "q = G(max_new_tokens=5, visual=common_pb2.Tensor(dtype=1, shape=[2, 2], data=bytes(16)))\n"
    "assert [e.text.text for e in generate(q, timeout=20)] == ['0', '1', '2', '3', '4']\n"
    "calls = generate(G(max_new_tokens=1, task='hang'), timeout=20)\n"
    "next(calls)\n"
    "calls.cancel()\n"
    "C, P = media_pb2.MediaChunk, media_pb2.MediaPutReply\n"
    "put = ch.stream_unary('/tpo.v1.Media/Put', C.SerializeToString, P.FromString)\n"
    "assert put(iter([C(data=bytes(1000))] * 3), timeout=20).size_bytes == 3000\n"
    "mirror = ch.stream_stream('/tpo.v1.Test/Mirror', C.SerializeToString, C.FromString)\n"
    "assert [len(c.data) for c in mirror(iter([C(data=bytes(n)) for n in (1, 2, 3)]), timeout=20)] == [1, 2, 3]\n"
    "H, A = health_pb2.HealthCheckRequest, health_pb2.HealthCheckResponse\n"
    "check = ch.unary_unary('/grpc.health.v1.Health/Check', H.SerializeToString, A.FromString)\n"
    "assert check(H(), timeout=20).status == A.SERVING and check(H(service='tpo.v1.Encoder'), timeout=20).status == A.SERVING\n"
    "fails(S.NOT_FOUND, check, H(service='tpo.v1.Enc'))\n"
    "watch = ch.unary_stream('/grpc.health.v1.Health/Watch', H.SerializeToString, A.FromString)\n"
    "assert next(watch(H(), timeout=20)).status == A.SERVING\n"
    "assert next(watch(H(service='x'), timeout=20)).status == A.SERVICE_UNKNOWN\n"
    "print('python is content')\n";

static void python_speaks_with_our_server(void **state)
{
    (void)state;
    struct tpo_server *s = echo_server((struct tpo_server_options){0});
    char command[2048];
    FILE *out = fopen("client.py", "w");
    assert_non_null(out);
    assert_true(fwrite(script, 1, sizeof(script) - 1, out) == sizeof(script) - 1);
    assert_int_equal(fclose(out), 0);
    snprintf(command, sizeof(command),
             "cp /usr/share/grpc-proto/grpc/health/v1/health.proto . && protoc -I'%s/proto' -I. --python_out=. common.proto "
             "encoder.proto "
             "gateway.proto media.proto router.proto health.proto && exec /usr/bin/python3 client.py 127.0.0.1:%d",
             tpo_test_source(), tpo_server_port(s));
    char *argv[] = {"sh", "-c", command, NULL};
    pid_t pid;
    int status = -1;
    assert_int_equal(posix_spawn(&pid, "/bin/sh", NULL, NULL, argv, environ), 0); /* fork would take gRPC's threads away */
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(status, 0);
    tpo_server_close(s);
}

TPO_TESTS(cmocka_unit_test(python_speaks_with_our_server))
