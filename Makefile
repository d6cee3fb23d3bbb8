# tpomesh: one file that sets up, builds, tests, benches and runs everything.
#
#   make run            set up, build, start the mesh, ask it real questions       make stop     end it
#   make test           set up, build, run every test (T=attention,rpc: only those whose path or case holds one of the words)
#   make test SAN=address|thread|undefined                                         the same under a sanitizer
#   make test-peers     our files in Hugging Face PEFT, transformers and TensorBoard, and theirs here (PyPI; not part of make test)
#   make parity KIT=DIR every golden case below DIR
#   make fuzz           every fuzzer of tests/fuzz/ for SECONDS_EACH
#   make bench B=hop    one bench of tests/bench/ (hop, cache, ask, matmul, ...)
#   make                build only            make cuda     the GPU's library alone (part of a build where nvcc is)
#   make format         settle all spacing (format-check: only say what is not)                  make clean

CC      ?= gcc
CXX     ?= g++
SAN     ?=
T       ?=
B       ?=
KIT     ?= tests/golden
SECONDS_EACH ?= 60
V       ?=
# One short line per command; V=1 shows the commands.
say     = $(if $(V),,@printf '  %-6s %s\n' '$(1)' '$(patsubst $(BUILD)/%,%,$@)';)
BUILD   := build$(if $(SAN),/$(SAN))

SAN_FLAGS_address   := -fsanitize=address -fno-omit-frame-pointer
SAN_FLAGS_undefined := -fsanitize=undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer
SAN_FLAGS_thread    := -fsanitize=thread -fno-omit-frame-pointer
SAN_FLAGS_fuzzer    := -fsanitize=fuzzer-no-link,address -fno-omit-frame-pointer -Wno-unknown-pragmas
SAN_FLAGS           := $(SAN_FLAGS_$(SAN))

# x86-64-v2 is the floor; kernels choose wider code at run time. Other machines build the generic path.
ARCH     := $(if $(filter x86_64,$(shell uname -m)),-march=x86-64-v2)
# -ffp-contract=off: a fused multiply-add where the compiler feels like one would make bits depend on flags.
CFLAGS   := -std=c11 -D_GNU_SOURCE -O2 -g $(ARCH) -ffp-contract=off -fno-math-errno -Wall -Wextra -Werror -MMD -MP $(SAN_FLAGS)
CXXFLAGS := -std=c++17 -O2 -g $(ARCH) -Wall -Wextra -Werror -MMD -MP $(SAN_FLAGS)
CPPFLAGS := -I. -I$(BUILD)/proto -I/usr/share/include
LDFLAGS  := $(SAN_FLAGS) -Wl,--as-needed -Wl,-rpath,'$$ORIGIN'
LDLIBS   := -lgrpc -lgpr -lprotobuf-c -lhiredis -ljansson -lcrypto -lsentencepiece -lstdc++ -luv -lyaml -lpng -lcurl -ldl -lm -lpthread

SERVICES := encoder router region
PROGRAMS := $(addprefix $(BUILD)/,tpo tpo-media tpo-gateway tpo-trainer $(addprefix tpo-,$(SERVICES)))

.PHONY: all build run stop test test-peers parity bench fuzz format format-check clean setup
.DEFAULT_GOAL := all
all: setup
	@$(MAKE) --no-print-directory -j$$(nproc) build

# --- what Debian provides -------------------------------------------------------------------------------------------------------
# Installing is skipped where nothing is missing, so that a second `make` needs neither root nor a network.
setup:
	@tools/setup.sh

# --- generated code -------------------------------------------------------------------------------------------------------------
PROTOS    := $(patsubst proto/%.proto,%,$(wildcard proto/*.proto proto/google/*.proto))
PROTO_C   := $(PROTOS:%=$(BUILD)/proto/%.pb-c.c) $(BUILD)/proto/grpc/health/v1/health.pb-c.c
PROTO_H   := $(PROTO_C:.c=.h)
PROTO_O   := $(PROTO_C:.c=.o)
$(BUILD)/proto/grpc/health/v1/health.pb-c.c:
	@mkdir -p $(BUILD)/proto
	$(call say,PROTO)protoc -I/usr/share/grpc-proto --c_out=$(BUILD)/proto grpc/health/v1/health.proto
$(BUILD)/proto/%.pb-c.c: proto/%.proto
	@mkdir -p $(BUILD)/proto
	$(call say,PROTO)protoc -Iproto --c_out=$(BUILD)/proto $*.proto
%.pb-c.h: %.pb-c.c ;
.SECONDARY: $(PROTO_C)

# llhttp comes as C sources in Debian's node-llhttp; strict mode refuses `Host : x`.
LLHTTP_O := $(patsubst %,$(BUILD)/llhttp/%.o,api http llhttp)
$(BUILD)/llhttp/%.o: /usr/share/llhttp/%.c
	@mkdir -p $(@D)
	$(call say,CC)$(CC) -O2 -w -DLLHTTP_STRICT_MODE=1 -I/usr/share/include/llhttp $(SAN_FLAGS) -c -o $@ $<

# --- objects and archives, one per folder -----------------------------------------------------------------------------------------
objects   = $(patsubst %,$(BUILD)/obj/%.o,$(basename $(1)))
COMMON_O  := $(call objects,$(wildcard common/*.c common/rpc/*.c common/media/*.c)) $(PROTO_O)
KERNELS_O := $(call objects,$(wildcard kernels/*.c))
NN_O      := $(call objects,$(wildcard nn/*.c nn/*.cc))
HOST_O    := $(call objects,$(wildcard services/host/*.c))
MODEL_O   := $(call objects,$(filter-out %/main.c %/rpc.c,$(foreach s,$(SERVICES),$(wildcard services/$(s)/*.c))))
GATEWAY_O := $(call objects,$(filter-out gateway/main.c,$(wildcard gateway/*.c))) $(LLHTTP_O)
TRAINER_O := $(call objects,$(filter-out trainer/main.c,$(wildcard trainer/*.c trainer/steps/*.c trainer/data/*.c trainer/world/*.c trainer/eval/*.c)))
WORKER_O  := $(call objects,$(wildcard common/media/worker/*.c))
CLI_O     := $(call objects,$(wildcard cli/*.c))

ARCHIVES  := trainer gateway model host nn kernels common
$(BUILD)/libcommon.a: $(COMMON_O)
$(BUILD)/libkernels.a: $(KERNELS_O)
$(BUILD)/libnn.a: $(NN_O)
$(BUILD)/libhost.a: $(HOST_O)
$(BUILD)/libmodel.a: $(MODEL_O)
$(BUILD)/libgateway.a: $(GATEWAY_O)
$(BUILD)/libtrainer.a: $(TRAINER_O)
$(BUILD)/lib%.a:
	@rm -f $@
	@ar rcs $@ $^

$(BUILD)/obj/%.o: %.c | $(PROTO_H)
	@mkdir -p $(@D)
	$(call say,CC)$(CC) $(CFLAGS) $(EXTRA) $(CPPFLAGS) -c -o $@ $<
$(BUILD)/obj/%.o: %.cc
	@mkdir -p $(@D)
	$(call say,CXX)$(CXX) $(CXXFLAGS) $(CPPFLAGS) -c -o $@ $<
$(PROTO_O): %.o: %.c
	$(call say,CC)$(CC) -std=c11 -O2 -g $(SAN_FLAGS) -I$(BUILD)/proto -c -o $@ $<
$(PROTO_O): | $(PROTO_H)

# A kernel file compiled for one instruction set says so in its name: attention_avx512.c. There every a*b+c is one fused instruction.
# (Under a sanitizer -O3 takes the compiler many minutes.)
VECTOR_O := $(if $(SAN),-O1,-O3)
$(BUILD)/obj/%_portable.o: EXTRA := $(VECTOR_O) -Wno-psabi
$(BUILD)/obj/%_avx2.o:   EXTRA := $(VECTOR_O) -Wno-psabi $(if $(ARCH),-march=x86-64-v3 -ffp-contract=fast)
$(BUILD)/obj/%_avx512.o: EXTRA := $(VECTOR_O) -Wno-psabi $(if $(ARCH),-march=x86-64-v4 -mprefer-vector-width=512 -ffp-contract=fast)
$(BUILD)/obj/%_avx512bf16.o: EXTRA := $(VECTOR_O) -Wno-psabi $(if $(ARCH),-march=x86-64-v4 -mavx512bf16 -mprefer-vector-width=512 -ffp-contract=fast)

# The phrasings of the world are inside the program.
$(BUILD)/obj/trainer/world/phrases.o: trainer/data/templates.yaml

# --- programs ---------------------------------------------------------------------------------------------------------------------
archives = $(foreach a,$(1),$(BUILD)/lib$(a).a)
link     = $(call say,LINK)$(CC) $(LDFLAGS) -o $@ $(filter %.o,$^) -Wl,--start-group $(filter %.a,$^) -Wl,--end-group $(LDLIBS)
$(BUILD)/tpo: $(CLI_O) $(call archives,common)
	$(link)
$(BUILD)/tpo-gateway: $(call objects,gateway/main.c) $(call archives,gateway common)
	$(link)
$(BUILD)/tpo-trainer: $(call objects,trainer/main.c) $(call archives,trainer model host nn kernels common)
	$(link)
# FFmpeg is GPL in Debian's build: this program is linked alone with it and is the only one that is.
$(BUILD)/tpo-media: $(WORKER_O) $(call archives,common)
	$(call say,LINK)$(CC) $(LDFLAGS) -o $@ $(WORKER_O) $(BUILD)/libcommon.a -lavformat -lavcodec -lswscale -lavutil -lseccomp -lcrypto -lm -lpthread
define service_program
$(BUILD)/tpo-$(1): $(call objects,services/$(1)/main.c services/$(1)/rpc.c) $(call archives,model host nn kernels common)
	$$(link)
endef
$(foreach s,$(SERVICES),$(eval $(call service_program,$(s))))

# --- the CUDA device: a library of its own, found at run time (kernels/stream.c), built where nvcc is --------------------------------------
NVCC       ?= nvcc
CUDA_ARCH  ?= 90
CUDA_LIB   := $(if $(SAN),,$(if $(shell command -v $(NVCC) 2>/dev/null),$(BUILD)/libtpo_cuda.so))
CUDA_O     := $(patsubst %.cu,$(BUILD)/cuda/%.o,$(wildcard kernels/*_cuda.cu))
CUDA_C_O   := $(patsubst %.c,$(BUILD)/cuda/%.o,common/status.c kernels/resize_taps.c)
# Machine code for one generation, and the intermediate form of an older one, from which the driver makes code for all others.
NVCCFLAGS  := -std=c++17 -O3 --extended-lambda -Xcompiler -fPIC,-fvisibility=hidden,-Wall,-Wextra,-Werror -Werror all-warnings -MMD -MP \
              -gencode arch=compute_$(CUDA_ARCH),code=sm_$(CUDA_ARCH) -gencode arch=compute_80,code=compute_80
$(CUDA_O): $(BUILD)/cuda/%.o: %.cu
	@mkdir -p $(@D)
	$(call say,NVCC)$(NVCC) $(NVCCFLAGS) -I. -c -o $@ $<
$(CUDA_C_O): $(BUILD)/cuda/%.o: %.c
	@mkdir -p $(@D)
	$(call say,CC)$(CC) $(CFLAGS) $(CPPFLAGS) -fPIC -fvisibility=hidden -c -o $@ $<
$(BUILD)/libtpo_cuda.so: $(CUDA_O) $(CUDA_C_O)
	$(call say,LINK)$(NVCC) -shared -cudart shared -o $@ $^ -lcublas -Xlinker -z,defs -Xlinker -rpath,$(patsubst %/bin/nvcc,%/lib64,$(realpath $(shell command -v $(NVCC))))
.PHONY: cuda
cuda: $(BUILD)/libtpo_cuda.so

build: $(PROGRAMS) $(BUILD)/tests/run $(CUDA_LIB)
-include $(shell find $(BUILD)/obj $(BUILD)/cuda -name '*.d' 2>/dev/null)

# --- tests: tests/**/test_X.c is a program of its own; tests/run starts one process per case ----------------------------------------
TEST_C   := $(shell find tests -name 'test_*.c' 2>/dev/null)
TESTS    := $(TEST_C:%.c=$(BUILD)/%)
TEST_HELP_O := $(call objects,$(wildcard tests/support/*.c))
BENCH_C  := $(wildcard tests/bench/bench_*.c)
BENCHES  := $(BENCH_C:%.c=$(BUILD)/%)
.SECONDARY: $(TEST_C:%.c=$(BUILD)/obj/%.o) $(BENCH_C:%.c=$(BUILD)/obj/%.o) $(TEST_HELP_O)
$(BUILD)/tests/run: $(BUILD)/obj/tests/run.o
	@mkdir -p $(@D)
	$(call say,LINK)$(CC) $(LDFLAGS) -o $@ $^
$(TESTS): $(BUILD)/tests/%: $(BUILD)/obj/tests/%.o $(TEST_HELP_O) $(call archives,$(ARCHIVES))
	@mkdir -p $(@D)
	$(link) -lcmocka
$(BENCHES): $(BUILD)/tests/%: $(BUILD)/obj/tests/%.o $(TEST_HELP_O) $(call archives,$(ARCHIVES))
	@mkdir -p $(@D)
	$(link) -lcmocka -ldnnl
# bench_hop's peer in grpc++: protoc's C++ from the same .proto files.
HOP_PROTOS := common encoder media echo
$(BUILD)/tests/bench/hop_peer: tests/bench/hop_peer.cc tests/bench/echo.proto proto/common.proto proto/encoder.proto proto/media.proto
	@mkdir -p $(@D)/hop
	@protoc -Iproto -Itests/bench --cpp_out=$(@D)/hop --grpc_out=$(@D)/hop --plugin=protoc-gen-grpc=/usr/bin/grpc_cpp_plugin $(HOP_PROTOS:%=%.proto)
	$(call say,CXX)$(CXX) -std=c++17 -O2 -w -I$(@D)/hop -o $@ $< $(HOP_PROTOS:%=$(@D)/hop/%.pb.cc) $(@D)/hop/echo.grpc.pb.cc $$(pkg-config --libs grpc++ protobuf)
# bench_ask's peer: PyTorch and friends from PyPI, in a virtual environment of its own.
# Its own stamp: the interpreter is there before, and also without, the packages.
build/peers/bin/python: build/peers/installed ;
build/peers/installed: tests/peers/requirements.txt
	python3 -m venv build/peers
	build/peers/bin/pip install --quiet -r $<
	@touch $@
# bench_decode's: llama.cpp, which pip builds for this machine (20 minutes on two cores).
build/peers-llama/bin/python: build/peers-llama/installed ;
build/peers-llama/installed: tests/peers/requirements-llama.txt
	python3 -m venv build/peers-llama
	CMAKE_ARGS=-DGGML_NATIVE=on build/peers-llama/bin/pip install --quiet -r $<
	@touch $@
bench_peers_ask := build/peers/bin/python
bench_peers_decode := build/peers-llama/bin/python
bench_peers_train := build/peers/bin/python
bench_peers_vit := build/peers/bin/python
bench_peers_hop := $(BUILD)/tests/bench/hop_peer

$(BUILD)/tests/parity: $(BUILD)/obj/tests/parity/main.o $(call objects,$(filter-out tests/parity/main.c,$(wildcard tests/parity/*.c))) $(call archives,$(ARCHIVES))
	@mkdir -p $(@D)
	$(link)

.PHONY: build-tests
build-tests: build $(TESTS) $(BUILD)/tests/parity
test: setup
	@$(MAKE) --no-print-directory -j$$(nproc) build-tests
	@ASAN_OPTIONS=detect_leaks=1 TSAN_OPTIONS=ignore_noninstrumented_modules=1 TPO_BUILD=$(BUILD) $(BUILD)/tests/run $(if $(T),--only $(T)) $(if $(SAN),--seconds 1200) $(TESTS)
parity: setup
	@$(MAKE) --no-print-directory -j$$(nproc) $(BUILD)/tests/parity
	@$(BUILD)/tests/parity $(KIT)
$(BUILD)/tests/peers/logits: $(BUILD)/obj/tests/peers/logits.o $(call archives,$(ARCHIVES))
	@mkdir -p $(@D)
	$(link)
test-peers: setup
	@$(MAKE) --no-print-directory -j$$(nproc) build $(BUILD)/tests/peers/logits build/peers/bin/python
	@build/peers/bin/python tests/peers/test_peft.py $(BUILD)
	@build/peers/bin/python tests/peers/test_events.py $(BUILD)
# All benches compile, and the peer that is compiled here, whoever runs them.
.PHONY: benches
benches: setup
	@tools/setup.sh bench
	@$(MAKE) --no-print-directory -j$$(nproc) build $(BENCHES) $(BUILD)/tests/bench/hop_peer
bench: setup
	@tools/setup.sh bench
	@$(MAKE) --no-print-directory -j$$(nproc) build $(BUILD)/tests/bench/bench_$(B) $(bench_peers_$(B))
	@TPO_BUILD=$(BUILD) $(BUILD)/tests/bench/bench_$(B)

# --- fuzzers: tests/fuzz/fuzz_X.c holds LLVMFuzzerTestOneInput; everything is compiled by clang with coverage ------------------------
FUZZERS  := $(patsubst %.c,$(BUILD)/%,$(wildcard tests/fuzz/fuzz_*.c))
$(FUZZERS): $(BUILD)/tests/%: $(BUILD)/obj/tests/%.o $(call archives,$(ARCHIVES))
	@mkdir -p $(@D)
	$(call say,LINK)$(CC) -fsanitize=fuzzer,address -o $@ $(filter %.o,$^) -Wl,--start-group $(filter %.a,$^) -Wl,--end-group $(LDLIBS)
.PHONY: fuzzers
fuzzers: $(FUZZERS) $(BUILD)/tpo-media
fuzz: setup
	@tools/setup.sh fuzz
	@$(MAKE) --no-print-directory -j$$(nproc) fuzzers SAN=fuzzer CC=clang CXX=clang++
	@tools/fuzz.sh $(SECONDS_EACH) build/fuzzer/tests/fuzz/fuzz_*

# --- run --------------------------------------------------------------------------------------------------------------------------
run: all
	@tools/run.sh
stop:
	@[ ! -x build/tpo ] || build/tpo down

format:
	@tools/setup.sh format
	@git ls-files '*.c' '*.h' '*.cc' '*.cu' | xargs clang-format -i
format-check:
	@tools/setup.sh format
	@git ls-files '*.c' '*.h' '*.cc' '*.cu' | xargs clang-format --dry-run -Werror
clean:
	rm -rf build
