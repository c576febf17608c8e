package client

import (
	"context"
	"crypto/ed25519"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/opensandbox/operator/executor/api"
	"github.com/opensandbox/operator/executor/server"
	"github.com/opensandbox/operator/executor/token"
)

// hostile is a client and a target whose executor has the pod's key and is whatever
// handle is, except that it tells a boot id at first.
func hostile(t *testing.T, handle http.HandlerFunc) (*Client, Target) {
	t.Helper()
	key, err := token.GenerateKey()
	require.NoError(t, err)
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == api.HealthPath {
			w.Header().Set(api.HeaderBootID, "boot")
			return
		}
		handle(w, r)
	}))
	s.TLS, err = server.TLS(key)
	require.NoError(t, err)
	s.StartTLS()
	t.Cleanup(s.Close)
	c := New(Options{Timeout: time.Minute, DialTimeout: time.Minute})
	t.Cleanup(c.Close)
	public, _ := key.Public().(ed25519.PublicKey)
	return c, Target{PodUID: "uid", Address: s.Listener.Addr().String(), Signer: token.NewSigner(key), PublicKey: public}
}

func (c *Client) anything(t *testing.T, target Target) error {
	t.Helper()
	_, err := c.List(t.Context(), target, api.Cursor{}, 0)
	return err
}

func TestNobodyAnswersForTheExecutor(t *testing.T) {
	for name, change := range map[string]func(*Target){
		"with another key":       func(t *Target) { t.PublicKey, _, _ = ed25519.GenerateKey(nil) },
		"where no key is pinned": func(t *Target) { t.PublicKey = nil },
	} {
		t.Run(name, func(t *testing.T) {
			var asked atomic.Int32
			c, target := hostile(t, func(http.ResponseWriter, *http.Request) { asked.Add(1) })
			change(&target)
			_, err := c.Start(t.Context(), target, "a", api.TaskRequest{})
			require.ErrorContains(t, err, "does not hold the key")
			assert.Zero(t, asked.Load(), "nothing was sent to it")
		})
	}
	plain := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("it was asked in clear") }))
	defer plain.Close()
	c, target := hostile(t, nil)
	target.Address = plain.Listener.Addr().String()
	require.ErrorContains(t, c.anything(t, target), "TLS")
}

// An address is another pod's soon.
func TestNoConnectionOfOnePodIsUsedForAnother(t *testing.T) {
	c, target := hostile(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "{}") })
	require.NoError(t, c.anything(t, target))
	other := target
	other.PodUID = "another"
	other.PublicKey, _, _ = ed25519.GenerateKey(nil)
	require.ErrorContains(t, c.anything(t, other), "does not hold the key")
	require.NoError(t, c.anything(t, target))
}

func TestABodyIsSentOnce(t *testing.T) {
	var bodies atomic.Int32
	var verifier *token.Verifier
	c, target := hostile(t, func(w http.ResponseWriter, r *http.Request) {
		if r.ContentLength > 0 {
			bodies.Add(1)
		}
		bearer := strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
		if _, err := verifier.Verify(bearer, "boot", r.Method, r.RequestURI, func() ([]byte, error) { return io.ReadAll(r.Body) }); err != nil {
			w.WriteHeader(http.StatusUnauthorized)
		}
		_, _ = io.WriteString(w, "{}")
	})
	var err error
	verifier, err = token.NewVerifier(map[string]ed25519.PublicKey{target.Signer.KeyID(): target.PublicKey}, target.PodUID)
	require.NoError(t, err)
	_, err = c.Start(t.Context(), target, "a", api.TaskRequest{})
	require.NoError(t, err)
	assert.Equal(t, int32(1), bodies.Load(), "the boot id was learned without it")
}

func TestNoRedirectIsFollowed(t *testing.T) {
	var elsewhere atomic.Int32
	other := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { elsewhere.Add(1) }))
	defer other.Close()
	c, target := hostile(t, func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, other.URL, http.StatusTemporaryRedirect)
	})
	_, err := c.Start(t.Context(), target, "a", api.TaskRequest{})
	require.Error(t, err)
	assert.Zero(t, elsewhere.Load())
}

func TestALongAnswerIsNotRead(t *testing.T) {
	c, target := hostile(t, func(w http.ResponseWriter, _ *http.Request) {
		for range 1000 {
			if _, err := io.WriteString(w, strings.Repeat(" ", 1<<20)); err != nil {
				return
			}
		}
	})
	assert.ErrorContains(t, c.anything(t, target), "more than 65536 bytes")
}

func TestEveryCallEnds(t *testing.T) {
	_, target := hostile(t, func(w http.ResponseWriter, r *http.Request) {
		for r.Context().Err() == nil { // one byte at a time, for ever
			_, _ = io.WriteString(w, " ")
			_ = http.NewResponseController(w).Flush()
			time.Sleep(10 * time.Millisecond)
		}
	})
	c := New(Options{Timeout: 500 * time.Millisecond, DialTimeout: time.Minute})
	defer c.Close()
	err := c.anything(t, target) // which would last for ever
	require.ErrorIs(t, err, context.DeadlineExceeded)
	assert.Empty(t, Reason(err))
}

func TestStringsAreMadeHarmless(t *testing.T) {
	c, target := hostile(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPut {
			w.WriteHeader(http.StatusConflict)
			fmt.Fprintf(w, `{"detail":"%s%s"}`, strings.Repeat("é", 2000), "\xff")
			return
		}
		fmt.Fprintf(w, `{"bootID":"../x","tasks":[{"id":"%s","message":"%s","state":"%[1]s"}]}`, "\xff\xfe", strings.Repeat("é", 2000))
	})
	list, err := c.List(t.Context(), target, api.Cursor{}, 0)
	require.NoError(t, err)
	assert.Empty(t, list.BootID)
	task := list.Tasks[0]
	for _, text := range []string{task.ID, task.Message, string(task.State)} {
		assert.True(t, utf8.ValidString(text))
		assert.LessOrEqual(t, len(text), 1100)
	}
	_, err = c.Start(t.Context(), target, "a", api.TaskRequest{})
	require.Error(t, err)
	assert.True(t, utf8.ValidString(err.Error()))
	assert.Less(t, len(err.Error()), 1500)
}

func TestOnlyWhatChangesNothingIsRetriedWithTheBootIDThatARefusalTells(t *testing.T) {
	var calls atomic.Int32
	c, target := hostile(t, func(w http.ResponseWriter, _ *http.Request) {
		// A liar tells a new one every time.
		w.Header().Set(api.HeaderBootID, fmt.Sprintf("boot%d", calls.Add(1)))
		w.WriteHeader(http.StatusUnauthorized)
	})
	assert.True(t, IsUnauthorized(c.anything(t, target)))
	assert.Equal(t, int32(2), calls.Load())
	// A change that was meant for the life before is not repeated: the caller must
	// know first that the sandbox is still its own.
	_, err := c.Start(t.Context(), target, "a", api.TaskRequest{})
	assert.True(t, IsUnauthorized(err))
	assert.Equal(t, int32(3), calls.Load())
}

func TestOddAnswers(t *testing.T) {
	for name, answer := range map[string]string{"not JSON": "<html>", "another type": `[1]`, "nothing": ""} {
		t.Run(name, func(t *testing.T) {
			c, target := hostile(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, answer) })
			assert.ErrorContains(t, c.anything(t, target), "not as expected")
		})
	}
	c, target := hostile(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNotModified) })
	var refused *Error
	assert.ErrorAs(t, c.anything(t, target), &refused)
}

func TestLittleOfABigAnswerIsKept(t *testing.T) {
	answer := `{"id":"a","reason":"` + strings.Repeat("r", 20000) + `"}`
	c, target := hostile(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == api.TasksPath {
			answer = `{"tasks":[` + strings.Repeat("{},", 20000) + `{}]}`
		}
		_, _ = io.WriteString(w, answer)
	})
	task, err := c.Start(t.Context(), target, "a", api.TaskRequest{})
	require.NoError(t, err)
	assert.Len(t, task.Reason, maxText)
	list, err := c.List(t.Context(), target, api.Cursor{}, 0)
	require.NoError(t, err)
	assert.Len(t, list.Tasks, maxList)
}

// As many entries as fit into an answer: what they would take is never allocated.
func TestEntriesThatAreTooManyAreNotDecoded(t *testing.T) {
	answer := []byte(`{"tasks":[` + strings.Repeat("{},", api.MaxAnswerBytes/3-10) + `{}]}`)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	var list taskList
	require.NoError(t, interpret(http.StatusOK, answer, &list))
	runtime.ReadMemStats(&after)
	assert.Len(t, list.Tasks, maxList)
	assert.Less(t, after.TotalAlloc-before.TotalAlloc, uint64(4*api.MaxAnswerBytes))
}

func TestTheTasksOfAnAnswer(t *testing.T) {
	for answer, want := range map[string][]api.Task{
		`{"tasks":null}`:              nil,
		`{}`:                          nil,
		`{"tasks":[]}`:                {},
		`{"tasks":[{"id":"a"}]}`:      {{ID: "a"}},
		`{"tasks":[{"id":"a"},null]}`: {{ID: "a"}, {}},
	} {
		var list taskList
		require.NoError(t, interpret(http.StatusOK, []byte(answer), &list), answer)
		assert.Equal(t, want, []api.Task(list.Tasks), answer)
	}
	for _, answer := range []string{`{"tasks":{}}`, `{"tasks":1}`, `{"tasks":["a"]}`, `{"tasks":[{"id":1}]}`} {
		var list taskList
		require.ErrorContains(t, interpret(http.StatusOK, []byte(answer), &list), "not as expected", answer)
	}
}
