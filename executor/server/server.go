// Package server is the executor's HTTP API: it authenticates, decodes, calls
// executor/tasks and encodes. It decides nothing about tasks. On the same port it takes
// in the launcher, which asks for a protocol of its own in the TLS handshake.
//
// Nothing of a request is looked at before its token was found good, except the
// path of the health check.
package server

import (
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/opensandbox/operator/executor/api"
	"github.com/opensandbox/operator/executor/link"
	"github.com/opensandbox/operator/executor/token"
)

// Tasks is what the API is about: a tasks.Executor, or one of the benchmark's,
// which runs no process. The methods are as that one's.
type Tasks interface {
	BootID() string
	Start(ctx context.Context, bootID, id string, request api.TaskRequest) (task api.Task, created bool, err error)
	Wait(ctx context.Context, since api.Cursor) api.TaskList
	Reset(bootID string, mostGrace *int64, last bool) (stopped int, err error)
	Ready() bool
	Serve(launcher net.Conn)
}

// Config of a Server. All fields are required.
type Config struct {
	Executor Tasks
	Verifier *token.Verifier
	// BeforeRestart is called after a reset that asks for a restart, before its answer.
	// When it fails, the reset has failed and Exit is not called.
	BeforeRestart func() error
	// Exit is called, once, after the answer to a reset that asks for a restart.
	// It must not wait for the server.
	Exit func()
	Log  *slog.Logger
}

// Server is the API. It implements http.Handler.
type Server struct {
	Config
	routes *http.ServeMux
}

// New returns the API's handler.
func New(config Config) *Server {
	s := &Server{Config: config, routes: http.NewServeMux()}
	s.routes.Handle(api.TasksPath, methods{http.MethodGet: s.list})
	s.routes.Handle(api.TasksPath+"/{id}", methods{http.MethodPut: s.put})
	s.routes.Handle(api.ResetPath, methods{http.MethodPost: s.reset})
	s.routes.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) {
		refuse(w, api.Problem{Status: http.StatusNotFound, Reason: api.ProblemNotFound})
	})
	return s
}

// HTTPServer returns a server for the API with every limit set. Long polls end when ctx
// does.
func (s *Server) HTTPServer(ctx context.Context) *http.Server {
	return &http.Server{
		Handler:           s,
		ReadHeaderTimeout: 10 * time.Second, // the TLS handshake, too
		ReadTimeout:       15 * time.Second,
		WriteTimeout:      writeTimeout, // of what begin does not begin
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    8 << 10,
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ErrorLog:          slog.NewLogLogger(s.Log.Handler(), slog.LevelDebug),
		TLSNextProto: map[string]func(*http.Server, *tls.Conn, http.Handler){
			link.Protocol: func(_ *http.Server, conn *tls.Conn, _ http.Handler) { s.Executor.Serve(conn) },
		},
	}
}

// Listen bounds the connections that come in by a listener, and has them speak TLS.
func Listen(plain net.Listener, key ed25519.PrivateKey) (net.Listener, error) {
	config, err := TLS(key)
	if err != nil {
		return nil, err
	}
	return tls.NewListener(newLimit(plain), config), nil
}

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	life := s.Executor.BootID() // what follows is done in this one or not at all
	w.Header().Set(api.HeaderBootID, life)
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	if r.URL.Path == api.HealthPath {
		s.health(w, r)
		return
	}
	body, err := s.authenticate(w, r, life)
	switch {
	case errors.Is(err, errTooLarge):
		refuse(w, api.Problem{
			Status: http.StatusRequestEntityTooLarge,
			Reason: api.ProblemTooLarge,
			Detail: fmt.Sprintf("the body has more than %d bytes", api.MaxRequestBytes),
		})
	case errors.Is(err, token.ErrUnauthorized):
		s.unauthorized(w, api.Problem{})
	case errors.Is(err, token.ErrClock):
		s.unauthorized(w, api.Problem{Reason: api.ProblemClock, Detail: "the token is not good at this time: it is " + time.Now().UTC().Format(time.RFC3339) + " here"})
	case err != nil:
		refuse(w, api.Problem{Status: http.StatusBadRequest, Reason: api.ProblemInvalid, Detail: "the body could not be read"})
	default:
		s.routes.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), grantKey{}, grant{life, body})))
	}
}

func (s *Server) unauthorized(w http.ResponseWriter, p api.Problem) {
	w.Header().Set(api.HeaderBootID, s.Executor.BootID())
	w.Header().Set("WWW-Authenticate", "Bearer")
	p.Status = http.StatusUnauthorized
	refuse(w, p)
}

// grant is what the token was found good for.
type grant struct {
	bootID string
	body   []byte
}

type grantKey struct{}

func grantOf(r *http.Request) grant {
	g, _ := r.Context().Value(grantKey{}).(grant)
	return g
}

func (s *Server) authenticate(w http.ResponseWriter, r *http.Request, bootID string) ([]byte, error) {
	bearer, found := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if !found {
		return nil, token.ErrUnauthorized
	}
	return s.Verifier.Verify(bearer, bootID, r.Method, r.RequestURI, func() ([]byte, error) {
		body, err := readBody(w, r)
		// The rest may take longer than a request may take to arrive.
		_ = http.NewResponseController(w).SetReadDeadline(time.Time{})
		return body, err
	})
}

// health tells a prober, and anyone else, that the executor works; and, where that is
// asked, whether it can run tasks.
func (s *Server) health(w http.ResponseWriter, r *http.Request) {
	switch {
	case r.Method != http.MethodGet && r.Method != http.MethodHead:
		w.Header().Set("Allow", "GET, HEAD")
		refuse(w, api.Problem{Status: http.StatusMethodNotAllowed, Reason: api.ProblemMethod})
	case r.URL.RawQuery != "" && !s.Executor.Ready():
		refuse(w, api.Problem{Status: http.StatusServiceUnavailable})
	default:
		begin(w, http.StatusNoContent)
	}
}

// methods routes by method and answers others with a problem document.
type methods map[string]http.HandlerFunc

func (m methods) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if handle, found := m[r.Method]; found {
		handle(w, r)
		return
	}
	for method := range m {
		w.Header().Add("Allow", method)
	}
	refuse(w, api.Problem{Status: http.StatusMethodNotAllowed, Reason: api.ProblemMethod})
}

// writeTimeout is how long a client may take to read an answer.
const writeTimeout = 30 * time.Second

// begin writes the header of an answer. The time to write runs from here, not
// from the request: what is done in between has limits of its own, and may take
// long, as a poll does by design and a start on a busy node.
func begin(w http.ResponseWriter, status int) {
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(writeTimeout))
	w.WriteHeader(status)
}

func answer(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	begin(w, status)
	_ = json.NewEncoder(w).Encode(v) // an error here is the client's going away
}

func refuse(w http.ResponseWriter, p api.Problem) {
	p.Type, p.Title = "about:blank", http.StatusText(p.Status)
	w.Header().Set("Content-Type", "application/problem+json")
	begin(w, p.Status)
	_ = json.NewEncoder(w).Encode(p)
}
