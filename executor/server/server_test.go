package server_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/opensandbox/operator/executor/api"
	"github.com/opensandbox/operator/executor/client"
	"github.com/opensandbox/operator/executor/fakesandbox"
	"github.com/opensandbox/operator/executor/link"
	"github.com/opensandbox/operator/executor/server"
	"github.com/opensandbox/operator/executor/store"
	"github.com/opensandbox/operator/executor/tasks"
	"github.com/opensandbox/operator/executor/token"
)

func TestMain(m *testing.M) {
	os.Exit(fakesandbox.Run(m))
}

const (
	podUID = "0b5f8f2e-0000-4000-8000-000000000001"

	patience = 3 * time.Minute // with a busy machine
)

type fixture struct {
	t       *testing.T
	sandbox *fakesandbox.Sandbox
	handler *server.Server
	url     string
	client  *client.Client
	plain   *http.Client // that knows the executor's key
	key     ed25519.PrivateKey
	signer  *token.Signer
	target  client.Target
	exited  chan struct{}
	// executor is what the server serves.
	executor *tasks.Executor
	// restartErr is why a restart cannot be prepared.
	restartErr error
}

func newFixture(t *testing.T, changes ...func(*http.Server)) *fixture {
	t.Helper()
	f := &fixture{t: t, exited: make(chan struct{})}
	key, err := token.GenerateKey()
	require.NoError(t, err)
	f.key, f.signer = key, token.NewSigner(key) // one key for both will do
	verifier, err := token.NewVerifier(map[string]ed25519.PublicKey{f.signer.KeyID(): f.signer.PublicKey()}, podUID)
	require.NoError(t, err)
	records, err := store.Open(t.TempDir())
	require.NoError(t, err)
	bare, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	listener, err := server.Listen(bare, key)
	require.NoError(t, err)
	offers := t.TempDir()
	f.executor, err = tasks.Open(tasks.Config{
		Store: records, OfferDir: offers, Offer: link.Offer{Address: bare.Addr().String(), PublicKey: f.signer.PublicKey()},
		Stdout: io.Discard, Stderr: io.Discard, Log: slog.New(slog.DiscardHandler),
	})
	require.NoError(t, err)
	f.handler = server.New(server.Config{
		Executor: f.executor, Verifier: verifier, Log: slog.New(slog.DiscardHandler),
		BeforeRestart: func() error { return f.restartErr }, Exit: func() { close(f.exited) },
	})
	web := f.handler.HTTPServer(context.Background())
	web.ReadHeaderTimeout, web.ReadTimeout = patience, patience
	for _, change := range changes {
		change(web)
	}
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = web.Serve(listener)
	}()
	f.url = "https://" + bare.Addr().String()
	f.client = client.New(client.Options{Timeout: patience, DialTimeout: patience})
	f.plain = &http.Client{Transport: &http.Transport{TLSClientConfig: link.PinnedTo(f.signer.PublicKey())}}
	f.target = client.Target{PodUID: podUID, Address: bare.Addr().String(), Signer: f.signer, PublicKey: f.signer.PublicKey()}
	t.Cleanup(func() {
		f.client.Close()
		f.plain.CloseIdleConnections()
		f.executor.Close()
		_ = web.Close()
		<-served
	})
	f.sandbox = fakesandbox.New(t, offers)
	return f
}

func (f *fixture) request(command ...string) api.TaskRequest {
	return api.TaskRequest{Spec: api.TaskSpec{Process: api.Process{Command: command}}}
}

// reply is an answer that was read.
type reply struct {
	status int
	header http.Header
	body   string
}

// raw makes a request with a good token, which change may spoil.
func (f *fixture) raw(method, path string, body []byte, change func(*http.Request)) reply {
	f.t.Helper()
	bearer, err := f.signer.Sign(token.Request{PodUID: podUID, BootID: f.executor.BootID(), Method: method, Path: path, Body: body})
	require.NoError(f.t, err)
	request, err := http.NewRequestWithContext(f.t.Context(), method, f.url+path, bytes.NewReader(body))
	require.NoError(f.t, err)
	request.Header.Set("Authorization", "Bearer "+bearer)
	if change != nil {
		change(request)
	}
	response, err := f.plain.Do(request)
	require.NoError(f.t, err)
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	require.NoError(f.t, err)
	return reply{response.StatusCode, response.Header, string(text)}
}

func (r reply) problem(t *testing.T) api.Problem {
	t.Helper()
	assert.Equal(t, "application/problem+json", r.header.Get("Content-Type"))
	assert.NotEmpty(t, r.header.Get(api.HeaderBootID))
	var p api.Problem
	require.NoError(t, json.Unmarshal([]byte(r.body), &p))
	assert.Equal(t, r.status, p.Status)
	assert.Equal(t, "about:blank", p.Type)
	return p
}

func TestATaskFromBeginningToEnd(t *testing.T) {
	f := newFixture(t)
	ctx := t.Context()
	request := f.request("sh", "-c", "until [ -e go ]; do sleep 0.02; done; echo out; echo err >&2; exit 7")
	task, err := f.client.Start(ctx, f.target, "a", request)
	require.NoError(t, err)
	assert.Equal(t, api.Running, task.State)

	list, err := f.client.List(ctx, f.target, api.Cursor{}, 0)
	require.NoError(t, err)
	require.Len(t, list.Tasks, 1)
	same, err := f.client.List(ctx, f.target, list.Cursor(), 50*time.Millisecond)
	require.NoError(t, err)
	assert.Equal(t, list, same, "nothing has changed")

	require.NoError(t, os.WriteFile(f.sandbox.Path("go"), nil, 0o644))
	for list.Tasks[0].State == api.Running {
		list, err = f.client.List(ctx, f.target, list.Cursor(), 30*time.Second)
		require.NoError(t, err)
	}
	got := list.Tasks[0]
	assert.Equal(t, api.Failed, got.State)
	assert.Equal(t, int32(7), *got.ExitCode)
	assert.Equal(t, "err", got.Message)

	again, err := f.client.Start(ctx, f.target, "a", request)
	require.NoError(t, err)
	assert.Equal(t, got, again, "it is not run twice")
}

func TestAPollMayTakeLongerThanARequestMayTakeToArrive(t *testing.T) {
	f := newFixture(t, func(s *http.Server) { s.ReadTimeout = 2 * time.Second })
	_, err := f.client.Start(t.Context(), f.target, "a", f.request("sleep", "4"))
	require.NoError(t, err)
	list, err := f.client.List(t.Context(), f.target, api.Cursor{}, 0)
	require.NoError(t, err)
	// If it ended with the time to read, nothing would have changed yet.
	again, err := f.client.List(t.Context(), f.target, list.Cursor(), api.MaxWait)
	require.NoError(t, err)
	require.Len(t, again.Tasks, 1)
	assert.Equal(t, api.Succeeded, again.Tasks[0].State)
}

func TestConflicts(t *testing.T) {
	f := newFixture(t)
	_, err := f.client.Start(t.Context(), f.target, "a", f.request("true"))
	require.NoError(t, err)
	_, err = f.client.Start(t.Context(), f.target, "a", f.request("false"))
	var refused *client.Error
	require.ErrorAs(t, err, &refused)
	assert.Equal(t, http.StatusConflict, refused.Status)
	assert.Equal(t, api.ProblemSpecDiffers, client.Reason(err))

	_, err = f.client.Start(t.Context(), f.target, "b", f.request("true"))
	require.ErrorAs(t, err, &refused)
	assert.Equal(t, http.StatusConflict, refused.Status)
	assert.Equal(t, api.ProblemAnotherTask, client.Reason(err))
}

func TestWithoutALauncherTheExecutorIsHealthyAndNotReady(t *testing.T) {
	f := newFixture(t)
	status := func(path string) int {
		response, err := f.plain.Get(f.url + path)
		require.NoError(t, err)
		response.Body.Close()
		assert.Equal(t, f.executor.BootID(), response.Header.Get(api.HeaderBootID))
		return response.StatusCode
	}
	assert.Equal(t, http.StatusNoContent, status(api.HealthPath))
	assert.Equal(t, http.StatusNoContent, status(api.ReadyPath))
	f.sandbox.Kill()
	require.Eventually(t, func() bool { return status(api.ReadyPath) == http.StatusServiceUnavailable }, patience, 5*time.Millisecond)
	assert.Equal(t, http.StatusNoContent, status(api.HealthPath))
	_, err := f.client.Start(t.Context(), f.target, "a", f.request("true"))
	assert.Equal(t, api.ProblemNoLauncher, client.Reason(err))
}

func TestWhatIsRefused(t *testing.T) {
	f := newFixture(t)
	spec := `{"shard":1,"spec":{"process":{"command":["x"]}}}`
	for _, c := range []struct {
		name, method, path, body string
		status                   int
		reason, field            string
	}{
		{"an unknown field", "PUT", "/v1/tasks/a", `{"spce":{}}`, 400, api.ProblemInvalid, "spce"},
		{"an empty command", "PUT", "/v1/tasks/a", strings.Replace(spec, `["x"]`, `[]`, 1), 400, api.ProblemInvalid, "spec.process.command"},
		{"an empty body", "PUT", "/v1/tasks/a", "", 400, api.ProblemInvalid, ""},
		{"an id with a slash", "PUT", "/v1/tasks/a%2Fb", spec, 400, api.ProblemInvalid, "id"},
		{"an id that climbs", "PUT", "/v1/tasks/%2e%2e", spec, 400, api.ProblemInvalid, "id"},
		{"a bad cursor", "GET", "/v1/tasks?since=7", "", 400, api.ProblemInvalid, "since"},
		{"a bad wait", "GET", "/v1/tasks?wait=long", "", 400, api.ProblemInvalid, "wait"},
		{"a negative wait", "GET", "/v1/tasks?wait=-1s", "", 400, api.ProblemInvalid, "wait"},
		{"one task", "GET", "/v1/tasks/a", "", 405, api.ProblemMethod, ""},
		{"no such path", "GET", "/v2/tasks", "", 404, api.ProblemNotFound, ""},
		{"another method", "POST", "/v1/tasks", "{}", 405, api.ProblemMethod, ""},
		{"an unknown field of a reset", "POST", "/v1/reset", `{"reboot":true}`, 400, api.ProblemInvalid, "reboot"},
		{"a reset's bad grace", "POST", "/v1/reset", `{"graceSeconds":-1}`, 400, api.ProblemInvalid, "graceSeconds"},
	} {
		t.Run(c.name, func(t *testing.T) {
			response := f.raw(c.method, c.path, []byte(c.body), nil)
			assert.Equal(t, c.status, response.status)
			p := response.problem(t)
			assert.Equal(t, c.reason, p.Reason)
			assert.Equal(t, c.field, p.Field)
		})
	}
}

func TestABodyThatIsTooLarge(t *testing.T) {
	f := newFixture(t)
	for _, size := range []int{api.MaxRequestBytes + 1, 10 << 20} {
		response := f.raw("PUT", "/v1/tasks/a", bytes.Repeat([]byte("x"), size), nil)
		assert.Equal(t, http.StatusRequestEntityTooLarge, response.status)
		assert.Equal(t, api.ProblemTooLarge, response.problem(t).Reason)
	}
}

// expired signs a token as the operator does, but of some minutes ago.
func (f *fixture) expired(body []byte) func(*http.Request) {
	f.t.Helper()
	sum := sha256.Sum256(body)
	now := time.Now().Add(-10 * time.Minute)
	t := jwt.NewWithClaims(jwt.SigningMethodEdDSA, jwt.MapClaims{
		"mth": "PUT", "pth": "/v1/tasks/a", "dig": base64.RawURLEncoding.EncodeToString(sum[:]), "bid": f.executor.BootID(),
		"aud": podUID, "jti": "expired", "iat": now.Unix(), "exp": now.Add(token.Lifetime).Unix(),
	})
	t.Header["kid"] = f.signer.KeyID()
	bearer, err := t.SignedString(f.key)
	require.NoError(f.t, err)
	return func(request *http.Request) { request.Header.Set("Authorization", "Bearer "+bearer) }
}

func TestRequestsWithoutAGoodToken(t *testing.T) {
	f := newFixture(t)
	body, err := json.Marshal(f.request("sh", "-c", "touch ran"))
	require.NoError(t, err)
	sign := func(change func(*token.Request)) func(*http.Request) {
		r := token.Request{PodUID: podUID, BootID: f.executor.BootID(), Method: "PUT", Path: "/v1/tasks/a", Body: body}
		change(&r)
		bearer, err := f.signer.Sign(r)
		require.NoError(t, err)
		return func(request *http.Request) { request.Header.Set("Authorization", "Bearer "+bearer) }
	}
	replayed := sign(func(r *token.Request) { r.Method, r.Path, r.Body = "GET", api.TasksPath, nil })
	assert.Equal(t, http.StatusOK, f.raw("GET", api.TasksPath, nil, replayed).status)
	assert.Equal(t, http.StatusUnauthorized, f.raw("GET", api.TasksPath, nil, replayed).status)

	for name, change := range map[string]func(*http.Request){
		"none":            func(r *http.Request) { r.Header.Del("Authorization") },
		"another scheme":  func(r *http.Request) { r.Header.Set("Authorization", "Basic eDp4") },
		"garbage":         func(r *http.Request) { r.Header.Set("Authorization", "Bearer garbage") },
		"another pod's":   sign(func(r *token.Request) { r.PodUID = "another" }),
		"another boot's":  sign(func(r *token.Request) { r.BootID = strings.Repeat("0", 32) }),
		"another method":  sign(func(r *token.Request) { r.Method = "GET" }),
		"another path":    sign(func(r *token.Request) { r.Path = "/v1/tasks/b" }),
		"a changed body":  sign(func(r *token.Request) { r.Body = []byte("{}") }),
		"a changed query": func(r *http.Request) { r.URL.RawQuery = "x=1" },
	} {
		t.Run(name, func(t *testing.T) {
			response := f.raw("PUT", "/v1/tasks/a", body, change)
			require.Equal(t, http.StatusUnauthorized, response.status)
			assert.Equal(t, f.executor.BootID(), response.header.Get(api.HeaderBootID))
			assert.JSONEq(t, `{"type":"about:blank","title":"Unauthorized","status":401}`, response.body, "nothing else is said")
		})
	}
	late := f.raw("PUT", "/v1/tasks/a", body, f.expired(body))
	require.Equal(t, http.StatusUnauthorized, late.status)
	assert.Equal(t, api.ProblemClock, late.problem(t).Reason, "the operator is told of its clock")
	for _, path := range []string{"/v1/tasks", "/v1/reset", "/nothing", "/"} {
		response := f.raw("GET", path, nil, func(r *http.Request) { r.Header.Del("Authorization") })
		assert.Equal(t, http.StatusUnauthorized, response.status, path)
	}
	_, err = os.Stat(f.sandbox.Path("ran"))
	assert.ErrorIs(t, err, os.ErrNotExist, "nothing ran")
}

func TestReset(t *testing.T) {
	f := newFixture(t)
	for _, restart := range []bool{false, true} {
		_, err := f.client.Start(t.Context(), f.target, "a", f.request("sleep", "7201"))
		require.NoError(t, err)
		grace := int64(0)
		answer, err := f.client.Reset(t.Context(), f.target, api.ResetRequest{Restart: restart, GraceSeconds: &grace}, 30*time.Second)
		require.NoError(t, err)
		assert.Equal(t, api.ResetAnswer{Stopped: 1, Exiting: restart}, answer)
		list, err := f.client.List(t.Context(), f.target, api.Cursor{}, 0)
		require.NoError(t, err)
		assert.Empty(t, list.Tasks)
	}
	<-f.exited
	_, err := f.client.Start(t.Context(), f.target, "a", f.request("true"))
	assert.Equal(t, api.ProblemResetting, client.Reason(err))
}

// What was sent in the last owner's time may come late: also when its token was looked
// at before the reset.
func TestAResetBeginsAnotherLife(t *testing.T) {
	f := newFixture(t)
	body, err := json.Marshal(f.request("sh", "-c", "touch ran"))
	require.NoError(t, err)
	bearer, err := f.signer.Sign(token.Request{PodUID: podUID, BootID: f.executor.BootID(), Method: "PUT", Path: "/v1/tasks/a", Body: body})
	require.NoError(t, err)
	reader, writer := io.Pipe()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodPut, f.url+"/v1/tasks/a", reader)
	require.NoError(t, err)
	request.Header.Set("Authorization", "Bearer "+bearer)
	answered := make(chan reply, 1)
	go func() {
		response, err := f.plain.Do(request)
		if assert.NoError(t, err) {
			assert.NoError(t, response.Body.Close())
			answered <- reply{status: response.StatusCode, header: response.Header}
		}
		close(answered)
	}()
	_, err = writer.Write(body[:1]) // returns when the request is being read
	require.NoError(t, err)
	before := f.executor.BootID()
	kept, err := f.signer.Sign(token.Request{PodUID: podUID, BootID: before, Method: "PUT", Path: "/v1/tasks/b", Body: body})
	require.NoError(t, err)
	_, err = f.client.Reset(t.Context(), f.target, api.ResetRequest{}, patience)
	require.NoError(t, err)
	require.NotEqual(t, before, f.executor.BootID())
	_, err = writer.Write(body[1:])
	require.NoError(t, err)
	require.NoError(t, writer.Close())
	response := <-answered
	assert.Equal(t, http.StatusUnauthorized, response.status)
	assert.Equal(t, f.executor.BootID(), response.header.Get(api.HeaderBootID))
	late := f.raw("PUT", "/v1/tasks/b", body, func(r *http.Request) { r.Header.Set("Authorization", "Bearer "+kept) })
	assert.Equal(t, http.StatusUnauthorized, late.status)
	require.NoFileExists(t, f.sandbox.Path("ran"))
	_, err = f.client.Start(t.Context(), f.target, "c", f.request("true"))
	require.NoError(t, err, "the client was told of it")
}

func TestARestartThatCannotBePreparedIsNone(t *testing.T) {
	f := newFixture(t)
	f.restartErr = errors.New("no space left on device")
	_, err := f.client.Reset(t.Context(), f.target, api.ResetRequest{Restart: true}, 30*time.Second)
	var refused *client.Error
	require.ErrorAs(t, err, &refused)
	select {
	case <-f.exited:
		t.Fatal("it ends as if the next start would clean")
	default:
	}
}

func (f *fixture) oneOfMany(i int, request api.TaskRequest) (err error) {
	ctx := f.t.Context()
	switch i % 4 {
	case 0:
		_, err = f.client.Start(ctx, f.target, "a", request)
	case 1:
		_, err = f.client.List(ctx, f.target, api.Cursor{}, 0)
	case 2:
		_, err = f.client.List(ctx, f.target, api.Cursor{BootID: f.executor.BootID(), Version: 1 << 40}, 0)
	default:
		_, err = f.client.List(ctx, f.target, api.Cursor{}, time.Second)
	}
	return err
}

func TestAThousandRequestsAtOnce(t *testing.T) {
	f := newFixture(t)
	request := f.request("sh", "-c", "echo ran >> ran")
	var wait sync.WaitGroup
	errs := make(chan error, 1000)
	for i := range 1000 {
		wait.Go(func() {
			err := f.oneOfMany(i, request)
			for err != nil && f.t.Context().Err() == nil { // too many connections, or a machine so busy that a token expires
				err = f.oneOfMany(i, request)
			}
			errs <- err
		})
	}
	wait.Wait()
	close(errs)
	for err := range errs {
		require.NoError(t, err)
	}
	require.Eventually(t, func() bool {
		ran, _ := os.ReadFile(f.sandbox.Path("ran"))
		return len(ran) > 0
	}, patience, 10*time.Millisecond)
	ran, err := os.ReadFile(f.sandbox.Path("ran"))
	require.NoError(t, err)
	assert.Equal(t, "ran\n", string(ran), "the task once")
}

// dial opens a connection that says nothing.
func (f *fixture) dial() net.Conn { return f.dialFrom(nil) }

func (f *fixture) dialFrom(ip net.IP) net.Conn {
	f.t.Helper()
	conn, err := (&net.Dialer{LocalAddr: &net.TCPAddr{IP: ip}}).Dial("tcp", f.target.Address)
	require.NoError(f.t, err)
	f.t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// A sandbox reaches its executor's port. What it opens costs little, and it cannot take
// the turn of who calls from elsewhere.
func TestConnectionsFromWithinThePodAreBounded(t *testing.T) {
	f := newFixture(t, func(s *http.Server) { // whose own limits close none of them
		s.ReadHeaderTimeout, s.ReadTimeout, s.WriteTimeout = time.Hour, time.Hour, time.Hour
	})
	closed := make(chan struct{}, 400)
	for i := range 400 {
		// A sandbox may choose among the addresses of loopback.
		conn := f.dialFrom(net.IPv4(127, 0, 0, byte(1+i%40)))
		go func() {
			if _, err := conn.Read(make([]byte, 1)); err != nil && f.t.Context().Err() == nil {
				closed <- struct{}{}
			}
		}()
	}
	for range 380 {
		select {
		case <-closed:
		case <-time.After(patience):
			t.Fatal("too many connections are kept open")
		}
	}
}

func TestATakenConnectionIsGivenBack(t *testing.T) {
	f := newFixture(t)
	for range 100 {
		require.NoError(t, f.dial().Close())
	}
	require.Eventually(t, func() bool {
		_, err := f.client.List(t.Context(), f.target, api.Cursor{}, 0)
		return err == nil
	}, patience, 5*time.Millisecond)
}

func TestWhoDoesNotKnowTheSecretIsNoLauncher(t *testing.T) {
	f := newFixture(t)
	f.sandbox.Kill()
	require.Eventually(t, func() bool { return !f.executor.Ready() }, patience, time.Millisecond)
	for name, secret := range map[string]string{"none": "", "a wrong one": strings.Repeat("0", 32)} {
		_, err := link.Dial(link.Offer{Address: f.target.Address, PublicKey: f.target.PublicKey, Secret: secret})
		require.Error(t, err, name)
	}
	assert.False(t, f.executor.Ready())
}

func TestALauncherTellsItsSecretToNobodyElse(t *testing.T) {
	f := newFixture(t)
	other, err := token.GenerateKey()
	require.NoError(t, err)
	public, _ := other.Public().(ed25519.PublicKey)
	_, err = link.Dial(link.Offer{Address: f.target.Address, PublicKey: public, Secret: "secret"})
	require.ErrorContains(t, err, "does not hold the key")
}
