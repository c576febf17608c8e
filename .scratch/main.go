package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/opensandbox/operator/executor/api"
	"github.com/opensandbox/operator/executor/client"
	"github.com/opensandbox/operator/executor/token"
)

func main() {
	keyFile := "/tmp/exec-key.pem"
	data, err := os.ReadFile(keyFile)
	if err != nil {
		k, _ := token.GenerateKey()
		data, _ = token.FormatPrivateKey(k)
		os.WriteFile(keyFile, data, 0o600)
	}
	key, err := token.ParsePrivateKey(data)
	check(err)
	s := token.NewSigner(key)
	if os.Args[1] == "keys" {
		fmt.Println(token.FormatPublicKeys(s.PublicKey()))
		return
	}
	c := client.New(client.Options{})
	t := client.Target{PodUID: os.Args[1], Address: client.PodAddress(os.Args[2]), Signer: s}
	ctx := context.Background()
	a := os.Args[4:]
	switch os.Args[3] {
	case "info":
		v, err := c.Info(ctx, t); out(v, err)
	case "list":
		v, err := c.List(ctx, t, api.Cursor{}, 0); out(v, err)
	case "get":
		v, err := c.Get(ctx, t, a[0]); out(v, err)
	case "logs":
		v, err := c.Logs(ctx, t, a[0], a[1], 65536); fmt.Print(string(v)); check(err)
	case "stop":
		v, err := c.Stop(ctx, t, a[0], 30*time.Second); out(v, err)
	case "reset":
		v, err := c.Reset(ctx, t, api.ResetRequest{Restart: len(a) > 0}, 30*time.Second); out(v, err)
	case "run": // id cid [env=..] command...
		r := api.TaskRequest{ContainerID: a[1], FallbackEnv: []api.EnvVar{{Name: "FALLBACK", Value: "yes"}}, Spec: api.TaskSpec{Process: api.Process{Command: a[2:]}}}
		v, err := c.Start(ctx, t, a[0], r)
		check(err)
		if os.Getenv("NOWAIT") != "" { out(v, nil); return }
		var l api.TaskList
		for {
			l, err = c.List(ctx, t, l.Cursor(), 30*time.Second)
			check(err)
			for _, x := range l.Tasks {
				if x.ID == a[0] && x.State.Ended() {
					out(x, nil)
					o, _ := c.Logs(ctx, t, a[0], "stdout", 65536)
					fmt.Print("--- stdout\n", string(o))
					return
				}
			}
		}
	}
}
func out(v any, err error) { check(err); d, _ := json.Marshal(v); fmt.Println(strings.TrimSpace(string(d))) }
func check(err error) { if err != nil { fmt.Println("ERR", err); os.Exit(1) } }
