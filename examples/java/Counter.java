import com.google.protobuf.ByteString;
import io.grpc.ManagedChannel;
import io.grpc.ManagedChannelBuilder;
import io.grpc.stub.StreamObserver;
import io.meshd.v1.*;
import java.util.concurrent.CountDownLatch;
import java.util.regex.Matcher;
import java.util.regex.Pattern;

public final class Counter implements StreamObserver<ConnectResponse> {
    private static final Pattern TEXT = Pattern.compile("\"text\"\\s*:\\s*\"([^\"]*)\"");
    private final CountDownLatch ended = new CountDownLatch(1);
    private StreamObserver<ConnectRequest> requests;
    private long sent;
    private long received;

    private synchronized void send(ConnectRequest.Builder request, boolean isNumbered) {
        requests.onNext(request.setSeq(isNumbered ? ++sent : 0).setAck(received).build());
    }

    @Override public void onNext(ConnectResponse response) {
        received = Math.max(received, response.getSeq());
        switch (response.getFrameCase()) {
            case WELCOME -> System.out.println("counter is open");
            case CALL -> {
                Matcher text = TEXT.matcher(response.getCall().getPayload().toStringUtf8());
                int words = text.find() && !text.group(1).isBlank() ? text.group(1).trim().split("\\s+").length : 0;
                send(ConnectRequest.newBuilder().setReply(CallReply.newBuilder()
                    .setId(response.getCall().getId())
                    .setStatus(Status.getDefaultInstance())
                    .setPayload(ByteString.copyFromUtf8("{\"words\": " + words + "}"))), true);
                send(ConnectRequest.newBuilder().setCredit(Credit.newBuilder().setFrames(1)), false);
            }
            default -> { }
        }
    }

    @Override public void onError(Throwable why) {
        System.err.println(why.getMessage());   // A status: what is wrong stands in its message.
        ended.countDown();
    }

    @Override public void onCompleted() {
        ended.countDown();
    }

    public static void main(String[] arguments) throws InterruptedException {
        String address = System.getenv().getOrDefault("MESHD_API", "127.0.0.1:7402");
        ManagedChannel channel = ManagedChannelBuilder.forTarget(address).usePlaintext().build();
        Counter counter = new Counter();
        counter.requests = SessionServiceGrpc.newStub(channel).connect(counter);
        counter.send(ConnectRequest.newBuilder().setHello(Hello.newBuilder()
            .setRevision(1).setCredit(64).setClient("meshd-example-java/1")
            .setAgent(Agent.newBuilder().setName("counter").addTools(Tool.newBuilder()
                .setName("count_words").setDescription("Count the words of a text.")))), false);
        counter.ended.await();
        channel.shutdownNow();
    }
}
