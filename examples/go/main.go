package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log"
	"os"
	"strings"

	"google.golang.org/grpc"
	pb "meshd.io/proto/meshd/v1"
)

func main() {
	address := os.Getenv("MESHD_API")
	if address == "" {
		address = "127.0.0.1:7402"
	}
	connection, err := grpc.Dial(address, grpc.WithInsecure())
	if err != nil {
		log.Fatal(err)
	}
	stream, err := pb.NewSessionServiceClient(connection).Connect(context.Background())
	if err != nil {
		log.Fatal(err)
	}
	var sent, received uint64
	send := func(request *pb.ConnectRequest, isNumbered bool) {
		if isNumbered {
			sent++
			request.Seq = sent
		}
		request.Ack = received
		if err := stream.Send(request); err != nil {
			log.Fatal(err)
		}
	}
	send(&pb.ConnectRequest{Frame: &pb.ConnectRequest_Hello{Hello: &pb.Hello{
		Revision: 1,
		Credit:   64,
		Client:   "meshd-example-go/1",
		Agent: &pb.Agent{Name: "counter", Tools: []*pb.Tool{{
			Name:        "count_words",
			Description: "Count the words of a text.",
			InputSchema: `{"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}`,
		}}},
	}}}, false)
	for {
		response, err := stream.Recv()
		if err != nil {
			log.Fatal(err) // A status: what is wrong stands in its message.
		}
		if response.Seq > received {
			received = response.Seq
		}
		switch frame := response.Frame.(type) {
		case *pb.ConnectResponse_Welcome:
			fmt.Println("counter is open")
		case *pb.ConnectResponse_Call:
			var question struct{ Text string }
			var answer []byte
			status := &pb.Status{}
			if err := json.Unmarshal(frame.Call.Payload, &question); err != nil {
				status = &pb.Status{Code: 3, Message: err.Error()} // INVALID_ARGUMENT: 400 over HTTP
			} else {
				answer, _ = json.Marshal(map[string]int{"words": len(strings.Fields(question.Text))})
			}
			send(&pb.ConnectRequest{Frame: &pb.ConnectRequest_Reply{Reply: &pb.CallReply{
				Id: frame.Call.Id, Status: status, Payload: answer,
			}}}, true)
			send(&pb.ConnectRequest{Frame: &pb.ConnectRequest_Credit{Credit: &pb.Credit{Frames: 1}}}, false)
		case *pb.ConnectResponse_Drain:
			fmt.Println("the sidecar is about to end")
		}
	}
}
