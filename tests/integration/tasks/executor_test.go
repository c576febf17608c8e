package tasks

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"

	executorapi "github.com/opensandbox/operator/executor/api"
	"github.com/opensandbox/operator/executor/server"
	"github.com/opensandbox/operator/executor/token"
)

// executor answers as a task executor does. Of commands it knows true, false, exit
// CODE and wait, which runs until it is stopped or finished by the test.
type executor struct {
	podUID, ip string
	boot       string
	verifier   *token.Verifier
	key        ed25519.PrivateKey

	mu       sync.Mutex // guards the rest
	server   *http.Server
	tasks    map[string]*executorapi.Task
	requests map[string]executorapi.TaskRequest
	version  int64
	changed  chan struct{}
	// starts count how often a task was begun, by id.
	starts map[string]int
	resets int
	// clockOff: it refuses every token by its clock.
	clockOff bool
	// restart gives the pod's containers new ids; nil does nothing.
	restart func()
}

func newExecutor(pod *corev1.Pod, container *corev1.Container, ip string) *executor {
	x := &executor{
		podUID: string(pod.UID), ip: ip,
		boot:  "b" + strings.ReplaceAll(string(pod.UID), "-", ""),
		tasks: map[string]*executorapi.Task{}, requests: map[string]executorapi.TaskRequest{},
		version: 1, changed: make(chan struct{}), starts: map[string]int{},
	}
	for _, e := range container.Env {
		var err error
		switch e.Name {
		case executorapi.EnvPublicKeys:
			var keys map[string]ed25519.PublicKey
			if keys, err = token.ParsePublicKeys(e.Value); err == nil {
				x.verifier, err = token.NewVerifier(keys, x.podUID)
			}
		case executorapi.EnvTLSKey:
			x.key, err = token.ParseSeed(e.Value)
		}
		if err != nil {
			panic(err)
		}
	}
	return x
}

func (x *executor) listen() {
	plain, err := net.Listen("tcp", net.JoinHostPort(x.ip, strconv.Itoa(executorapi.Port)))
	if err != nil {
		panic(err)
	}
	listener, err := server.Listen(plain, x.key)
	if err != nil {
		panic(err)
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	x.server = &http.Server{Handler: x, ReadHeaderTimeout: time.Second}
	go func(s *http.Server) { _ = s.Serve(listener) }(x.server)
}

// close cuts the executor off; listen brings it back with what it knew.
func (x *executor) close() {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.server != nil {
		_ = x.server.Close()
	}
}

func (x *executor) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set(executorapi.HeaderBootID, x.boot)
	bearer, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	body, err := x.verifier.Verify(bearer, x.boot, r.Method, r.RequestURI, func() ([]byte, error) { return io.ReadAll(r.Body) })
	x.mu.Lock()
	clockOff := x.clockOff
	x.mu.Unlock()
	switch {
	case clockOff && r.URL.Path != executorapi.HealthPath:
		refuse(w, http.StatusUnauthorized, executorapi.ProblemClock)
		return
	case err != nil:
		refuse(w, http.StatusUnauthorized, "")
		return
	}
	id, _ := strings.CutPrefix(r.URL.Path, executorapi.TasksPath+"/")
	switch {
	case r.Method == http.MethodPut:
		x.put(w, id, body)
	case r.Method == http.MethodGet && r.URL.Path == executorapi.TasksPath:
		x.list(w, r)
	case r.Method == http.MethodPost && r.URL.Path == executorapi.ResetPath:
		x.mu.Lock()
		x.resets++
		n := len(x.tasks)
		clear(x.tasks)
		x.bump()
		restart := x.restart
		x.mu.Unlock()
		var request executorapi.ResetRequest
		_ = json.Unmarshal(body, &request)
		_ = json.NewEncoder(w).Encode(executorapi.ResetAnswer{Stopped: n, Exiting: request.Restart})
		if request.Restart && restart != nil {
			restart()
		}
	default:
		refuse(w, http.StatusNotFound, executorapi.ProblemNotFound)
	}
}

func refuse(w http.ResponseWriter, status int, reason string) {
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(executorapi.Problem{Status: status, Reason: reason, Detail: "because"})
}

func (x *executor) put(w http.ResponseWriter, id string, body []byte) {
	request, err := executorapi.DecodeTaskRequest(body)
	if err != nil {
		refuse(w, http.StatusBadRequest, executorapi.ProblemInvalid)
		return
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.tasks[id] == nil {
		x.starts[id]++
		x.requests[id] = request
		x.tasks[id] = &executorapi.Task{ID: id, State: executorapi.Running}
		code, err := strconv.Atoi(map[string]string{"true": "0", "false": "1"}[request.Spec.Process.Command[0]])
		if request.Spec.Process.Command[0] == "exit" {
			code, err = strconv.Atoi(request.Spec.Process.Args[0])
		}
		if err == nil {
			end(x.tasks[id], int32(code))
		}
		x.bump()
	}
	_ = json.NewEncoder(w).Encode(x.tasks[id])
}

func end(t *executorapi.Task, code int32) {
	t.ExitCode, t.State = &code, executorapi.Succeeded
	if code != 0 {
		t.State, t.Reason, t.Message = executorapi.Failed, executorapi.ReasonExitCode, "last words"
	}
}

// finish ends the tasks that run with an exit code.
func (x *executor) finish(code int32) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, t := range x.tasks {
		if !t.State.Ended() {
			end(t, code)
		}
	}
	x.bump()
}

// bump tells those who wait. The lock is held.
func (x *executor) bump() {
	x.version++
	close(x.changed)
	x.changed = make(chan struct{})
}

func (x *executor) list(w http.ResponseWriter, r *http.Request) {
	since, _ := executorapi.ParseCursor(r.URL.Query().Get("since"))
	wait, _ := time.ParseDuration(r.URL.Query().Get("wait"))
	ctx, cancel := context.WithTimeout(r.Context(), wait)
	defer cancel()
	for {
		x.mu.Lock()
		list := executorapi.TaskList{BootID: x.boot, Version: x.version, Tasks: []executorapi.Task{}}
		for _, t := range x.tasks {
			list.Tasks = append(list.Tasks, *t)
		}
		changed := x.changed
		x.mu.Unlock()
		if since != list.Cursor() || ctx.Err() != nil {
			_ = json.NewEncoder(w).Encode(list)
			return
		}
		select {
		case <-changed:
		case <-ctx.Done():
		}
	}
}

// seen returns how often tasks were begun, and how often the executor was reset.
func (x *executor) seen() (starts, resets int) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, n := range x.starts {
		starts += n
	}
	return starts, x.resets
}
