#!/bin/sh
# Installs what building and testing need from Debian's packages; quiet and instant where nothing is missing.
#   tools/setup.sh [bench|fuzz|format]
set -eu
packages="gcc g++ make pkg-config ca-certificates curl
 libgrpc-dev libprotobuf-c-dev protobuf-c-compiler protobuf-compiler libprotobuf-dev grpc-proto
 libsentencepiece-dev sentencepiece libhiredis-dev redis-server libuv1-dev libjansson-dev node-llhttp
 libavcodec-dev libavformat-dev libswscale-dev libavutil-dev ffmpeg libseccomp-dev libyaml-dev libssl-dev libpng-dev libcurl4-openssl-dev
 libcmocka-dev python3 python3-grpcio python3-protobuf protobuf-compiler-grpc"
[ "${1:-}" != bench ] || packages="$packages libgrpc++-dev libdnnl-dev"
[ "${1:-}" != fuzz ] || packages="$packages clang libclang-rt-14-dev"
[ "${1:-}" != format ] || packages="$packages clang-format"
missing=
for p in $packages; do
    dpkg-query -W -f='${Status}' "$p" 2>/dev/null | grep -q 'ok installed' || missing="$missing $p"
done
[ -n "$missing" ] || exit 0
echo "installing:$missing"
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends -o DPkg::Lock::Timeout=300 $missing >/dev/null
