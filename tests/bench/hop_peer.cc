// hop_peer -- bench_hop's peer: the same echo with grpc++'s asynchronous API, one thread and one completion queue on each side.
//   hop_peer serve                                  prints its port
//   hop_peer ask ADDRESS small|large OUTSTANDING CALLS      prints the seconds that CALLS calls took after a warm-up
#include <grpcpp/grpcpp.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>

#include "echo.grpc.pb.h"

using tpo::bench::Echo;

struct Tag {
    virtual ~Tag() = default;
    virtual void proceed(bool ok) = 0;
};

template <class Message> struct ServerCall : Tag {
    using Request = void (Echo::AsyncService::*)(grpc::ServerContext *, Message *, grpc::ServerAsyncResponseWriter<Message> *,
                                                 grpc::CompletionQueue *, grpc::ServerCompletionQueue *, void *);
    ServerCall(Echo::AsyncService *service, grpc::ServerCompletionQueue *queue, Request request)
        : service(service), queue(queue), request(request), writer(&context)
    {
        (service->*request)(&context, &message, &writer, queue, queue, this);
    }
    void proceed(bool ok) override
    {
        if (!ok || finished) {
            delete this;
            return;
        }
        new ServerCall(service, queue, request);
        finished = true;
        writer.Finish(message, grpc::Status::OK, this);
    }
    Echo::AsyncService *service;
    grpc::ServerCompletionQueue *queue;
    Request request;
    grpc::ServerContext context;
    Message message;
    grpc::ServerAsyncResponseWriter<Message> writer;
    bool finished = false;
};

static int serve()
{
    Echo::AsyncService service;
    grpc::ServerBuilder builder;
    int port = 0;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
    builder.RegisterService(&service);
    builder.SetMaxReceiveMessageSize(64 << 20);
    auto queue = builder.AddCompletionQueue();
    auto server = builder.BuildAndStart();
    for (int i = 0; i < 64; i++) {
        new ServerCall<tpo::v1::MediaChunk>(&service, queue.get(), &Echo::AsyncService::RequestSmall);
        new ServerCall<tpo::v1::EncodeReply>(&service, queue.get(), &Echo::AsyncService::RequestLarge);
    }
    std::printf("%d\n", port);
    std::fflush(stdout);
    void *tag;
    bool ok;
    while (queue->Next(&tag, &ok)) static_cast<Tag *>(tag)->proceed(ok);
    return 0;
}

template <class Message> struct ClientCall {
    grpc::ClientContext context;
    Message reply;
    grpc::Status status;
    std::unique_ptr<grpc::ClientAsyncResponseReader<Message>> reader;
};

template <class Message, class Start> static void run(Start start, const Message &message, int outstanding, int calls)
{
    grpc::CompletionQueue queue;
    int left = calls, in_flight = 0;
    size_t bytes = 0;
    auto open = [&] {
        auto *call = new ClientCall<Message>;
        call->context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(60));
        Message copy = message; // a fresh message for each call, as a service makes one
        call->reader = start(&call->context, copy, &queue);
        call->reader->Finish(&call->reply, &call->status, call);
        left--, in_flight++;
    };
    for (int i = 0; i < outstanding && left > 0; i++) open();
    while (in_flight > 0) {
        void *tag;
        bool ok;
        queue.Next(&tag, &ok);
        auto *call = static_cast<ClientCall<Message> *>(tag);
        if (!call->status.ok()) {
            std::fprintf(stderr, "hop_peer: %s\n", call->status.error_message().c_str());
            std::exit(1);
        }
        bytes += call->reply.ByteSizeLong();
        delete call;
        in_flight--;
        if (left > 0) open();
    }
    if (bytes != calls * message.ByteSizeLong()) {
        std::fprintf(stderr, "hop_peer: not all came back\n");
        std::exit(1);
    }
}

template <class Message, class Start> static int time_it(Start start, const Message &message, int outstanding, int calls)
{
    run(start, message, outstanding, calls / 10 + 1);
    auto begun = std::chrono::steady_clock::now();
    run(start, message, outstanding, calls);
    std::printf("%.9f\n", std::chrono::duration<double>(std::chrono::steady_clock::now() - begun).count());
    return 0;
}

static int ask(char **argv)
{
    grpc::ChannelArguments arguments;
    arguments.SetMaxReceiveMessageSize(64 << 20);
    auto stub = Echo::NewStub(grpc::CreateCustomChannel(argv[2], grpc::InsecureChannelCredentials(), arguments));
    int outstanding = std::atoi(argv[4]), calls = std::atoi(argv[5]);
    if (std::string(argv[3]) == "small") {
        tpo::v1::MediaChunk message;
        message.set_data(std::string(100, '\1'));
        return time_it([&](auto *c, const auto &m, auto *q) { return stub->AsyncSmall(c, m, q); }, message, outstanding, calls);
    }
    tpo::v1::EncodeReply message;
    message.mutable_visual()->set_dtype(tpo::v1::DTYPE_F32);
    message.mutable_visual()->add_shape(96);
    message.mutable_visual()->add_shape(768);
    message.mutable_visual()->set_data(std::string(96 * 768 * 4, '\1'));
    return time_it([&](auto *c, const auto &m, auto *q) { return stub->AsyncLarge(c, m, q); }, message, outstanding, calls);
}

int main(int argc, char **argv)
{
    if (argc == 2 && std::string(argv[1]) == "serve") return serve();
    if (argc == 6 && std::string(argv[1]) == "ask") return ask(argv);
    std::fprintf(stderr, "hop_peer serve | ask ADDRESS small|large OUTSTANDING CALLS\n");
    return 2;
}
