package client

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/opensandbox/operator/executor/api"
	"github.com/opensandbox/operator/executor/token"
)

// hostile is a client and a target whose executor is whatever handle is.
func hostile(t *testing.T, handle http.HandlerFunc) (*Client, Target) {
	t.Helper()
	s := httptest.NewServer(handle)
	t.Cleanup(s.Close)
	key, err := token.GenerateKey()
	require.NoError(t, err)
	c := New(Options{Timeout: time.Minute, DialTimeout: time.Minute})
	t.Cleanup(c.Close)
	return c, Target{PodUID: "uid", Address: s.Listener.Addr().String(), Signer: token.NewSigner(key)}
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
	_, err := c.Info(t.Context(), target)
	assert.ErrorContains(t, err, "more than 65536 bytes")
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
	_, err := c.Info(t.Context(), target) // which would last for ever
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

func TestARefusalIsRetriedOnceWithTheBootIDItTells(t *testing.T) {
	var calls atomic.Int32
	c, target := hostile(t, func(w http.ResponseWriter, _ *http.Request) {
		// A liar tells a new one every time.
		w.Header().Set(api.HeaderBootID, fmt.Sprintf("boot%d", calls.Add(1)))
		w.WriteHeader(http.StatusUnauthorized)
	})
	_, err := c.Info(t.Context(), target)
	assert.True(t, IsUnauthorized(err))
	assert.Equal(t, int32(2), calls.Load())
	// A change that was meant for the boot id before is not repeated: the caller must know
	// first that the sandbox is still its own.
	_, err = c.Start(t.Context(), target, "a", api.TaskRequest{})
	assert.True(t, IsUnauthorized(err))
	assert.Equal(t, int32(3), calls.Load())
}

func TestOnlyCapabilitiesAreListedAsSuch(t *testing.T) {
	c, target := hostile(t, func(w http.ResponseWriter, _ *http.Request) {
		_, _ = fmt.Fprintf(w, `{"missingCapabilities":["NET_RAW",%q,"no such"]}`, strings.Repeat("A", 1000))
	})
	task, err := c.Start(t.Context(), target, "a", api.TaskRequest{})
	require.NoError(t, err)
	assert.Equal(t, []string{"NET_RAW"}, task.MissingCapabilities)
}

func TestOddAnswers(t *testing.T) {
	for name, answer := range map[string]string{"not JSON": "<html>", "another type": `[1]`, "nothing": ""} {
		t.Run(name, func(t *testing.T) {
			c, target := hostile(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, answer) })
			_, err := c.Info(t.Context(), target)
			assert.ErrorContains(t, err, "not as expected")
		})
	}
	c, target := hostile(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNotModified) })
	_, err := c.Info(t.Context(), target)
	var refused *Error
	assert.ErrorAs(t, err, &refused)
}

func TestLittleOfABigAnswerIsKept(t *testing.T) {
	answer := `{"id":"a","missingCapabilities":["` + strings.Repeat(`A","`, 10000) + `"],"reason":"` + strings.Repeat("r", 20000) + `"}`
	c, target := hostile(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == api.TasksPath {
			answer = `{"tasks":[` + strings.Repeat("{},", 20000) + `{}]}`
		}
		_, _ = io.WriteString(w, answer)
	})
	task, err := c.Start(t.Context(), target, "a", api.TaskRequest{})
	require.NoError(t, err)
	assert.Len(t, task.MissingCapabilities, maxCapabilities)
	assert.Less(t, cap(task.MissingCapabilities), 2*maxCapabilities)
	assert.Len(t, task.Reason, maxText)
	list, err := c.List(t.Context(), target, api.Cursor{}, 0)
	require.NoError(t, err)
	assert.Len(t, list.Tasks, maxList)
	assert.Less(t, cap(list.Tasks), 2*maxList)
}
