package webhook

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	admissionv1 "k8s.io/api/admission/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"
)

// served returns the address of the handler behind the guard, and a count of the bytes that
// were read of bodies.
func served(t *testing.T, g *guard, next http.HandlerFunc) (string, *atomic.Int64) {
	t.Helper()
	read := &atomic.Int64{}
	guarded := g.before(next)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.Body = &countedBody{r.Body, read}
		guarded.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	return server.URL, read
}

type countedBody struct {
	io.ReadCloser
	read *atomic.Int64
}

func (b *countedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.read.Add(int64(n))
	return n, err
}

// post returns the status of the answer. A body of unknown length is sent in chunks.
func post(t *testing.T, address string, body io.Reader) int {
	t.Helper()
	response, err := http.Post(address, "application/json", body)
	if err != nil {
		assert.NoError(t, err)
		return 0
	}
	_ = response.Body.Close()
	return response.StatusCode
}

// review of so many bytes.
func review(size int) []byte {
	const begin, end = `{"a":"`, `"}`
	return []byte(begin + strings.Repeat("x", size-len(begin)-len(end)) + end)
}

func TestReviewsAreReadUpToTheirBound(t *testing.T) {
	var got []byte
	address, read := served(t, newGuard(), func(_ http.ResponseWriter, r *http.Request) { got, _ = io.ReadAll(r.Body) })
	fits := review(maxReviewBytes)
	require.Equal(t, http.StatusOK, post(t, address, bytes.NewReader(fits)))
	require.Equal(t, fits, got)
	require.Equal(t, http.StatusOK, post(t, address, io.MultiReader(bytes.NewReader(fits))), "in chunks")

	for _, size := range []int{maxReviewBytes + 1, 6_600_000} {
		read.Store(0)
		require.Equal(t, http.StatusRequestEntityTooLarge, post(t, address, bytes.NewReader(review(size))))
		require.Zero(t, read.Load(), "nothing of what says that it is too large")
		require.Equal(t, http.StatusRequestEntityTooLarge, post(t, address, io.MultiReader(bytes.NewReader(review(size)))))
		require.LessOrEqual(t, read.Load(), int64(maxReviewBytes+1), "and no more than the bound of what does not say it")
	}
}

func TestFewReviewsAreWorkedOnAtOnce(t *testing.T) {
	var now, most atomic.Int32
	goOn, entered := make(chan struct{}), make(chan struct{}, 100)
	address, _ := served(t, newGuard(), func(_ http.ResponseWriter, r *http.Request) {
		if r.ContentLength <= smallBytes {
			return
		}
		most.Store(max(most.Load(), now.Add(1)))
		entered <- struct{}{}
		<-goOn
		now.Add(-1)
	})
	var running sync.WaitGroup
	for range 3 * largeAtOnce {
		running.Go(func() { assert.Equal(t, http.StatusOK, post(t, address, bytes.NewReader(review(smallBytes+1)))) })
	}
	for range largeAtOnce {
		<-entered
	}
	require.Equal(t, http.StatusOK, post(t, address, bytes.NewReader(review(smallBytes))), "a small one does not wait")
	close(goOn)
	running.Wait()
	require.Equal(t, int32(largeAtOnce), most.Load())
}

func TestAReviewThatFindsNoPlaceInTimeIsNotAnswered(t *testing.T) {
	g := newGuard()
	for range largeAtOnce {
		g.large <- struct{}{}
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	handler := g.before(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("it was worked on") }))
	answer := httptest.NewRecorder()
	handler.ServeHTTP(answer, httptest.NewRequestWithContext(gone, http.MethodPost, "/", bytes.NewReader(review(smallBytes+1))))
	require.Equal(t, http.StatusServiceUnavailable, answer.Code)
}

func TestABodyThatDoesNotComeLosesItsPlace(t *testing.T) {
	g := newGuard()
	g.readTime = time.Millisecond
	address, _ := served(t, g, func(http.ResponseWriter, *http.Request) { t.Error("it was worked on") })
	connection, err := net.Dial("tcp", strings.TrimPrefix(address, "http://"))
	require.NoError(t, err)
	defer func() { _ = connection.Close() }()
	_, err = fmt.Fprintf(connection, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n{")
	require.NoError(t, err)
	answer, err := io.ReadAll(connection)
	require.NoError(t, err)
	require.Contains(t, string(answer), "400 Bad Request")
	require.Empty(t, g.large)
}

func TestWhatTheAPIServerNeverSendsIsNotDecoded(t *testing.T) {
	address, _ := served(t, newGuard(), func(http.ResponseWriter, *http.Request) { t.Error("it was handed on") })
	for name, body := range map[string]string{
		"nothing":         "",
		"YAML":            "- {}\n",
		"a list":          "[{}]",
		"too many values": `{"a":[` + strings.Repeat("{},", maxValues/2) + `{}]}`,
	} {
		require.Equal(t, http.StatusBadRequest, post(t, address, strings.NewReader(body)), name)
	}
}

func TestValues(t *testing.T) {
	for text, want := range map[string]int{
		`{}`:                        1,
		`{"a":1,"b":[1,2]}`:         4,
		`{"a":"{,[\",[","b\\":","}`: 2,
	} {
		require.Equal(t, want, values([]byte(text)), text)
	}
}

func TestTemplatesWithTooManyOfAKind(t *testing.T) {
	list := func(n int) string { return "[" + strings.TrimSuffix(strings.Repeat("{},", n), ",") + "]" }
	pod := func(fields string) []byte { return []byte(`{"spec":{"template":{"spec":{` + fields + `}}}}`) }
	cases := []struct {
		name            string
		object, old     []byte
		handled         bool
		refused, warned string
	}{
		{"as many as may be", pod(`"containers":` + list(maxOfAKind)), nil, true, "", ""},
		{"another type", pod(`"containers":{"a":1}`), nil, true, "", ""},
		{"no object", nil, nil, true, "", ""},
		{"containers", pod(`"containers":` + list(maxOfAKind+1)), nil, false, "spec.template.spec.containers: must have at most 500 items", ""},
		{"containers named twice", pod(`"containers":` + list(maxOfAKind) + `,"containers":[{}]`), nil, false, "spec.template.spec.containers", ""},
		{"init containers", pod(`"initContainers":` + list(maxOfAKind+1)), nil, false, "spec.template.spec.initContainers", ""},
		{"ephemeral containers", pod(`"ephemeralContainers":` + list(maxOfAKind+1)), nil, false, "spec.template.spec.ephemeralContainers", ""},
		{"volumes", pod(`"volumes":` + list(maxOfAKind+1)), nil, false, "spec.template.spec.volumes", ""},
		{"an update that adds some", pod(`"volumes":` + list(maxOfAKind+1)), pod(`"volumes":` + list(1)), false, "spec.template.spec.volumes", ""},
		{"a deletion", nil, pod(`"volumes":` + list(maxOfAKind+1)), false, "", "spec.template.spec.volumes"},
		{"an update that takes a finalizer off", pod(`"volumes":` + list(maxOfAKind+1)), pod(`"volumes":` + list(maxOfAKind+1)), false, "", "spec.template.spec.volumes"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			handled := false
			handler := sized{admission.HandlerFunc(func(context.Context, admission.Request) admission.Response {
				handled = true
				return admission.Allowed("")
			})}
			response := handler.Handle(t.Context(), admission.Request{AdmissionRequest: admissionv1.AdmissionRequest{
				Object: runtime.RawExtension{Raw: c.object}, OldObject: runtime.RawExtension{Raw: c.old},
			}})
			require.Equal(t, c.handled, handled)
			require.Equal(t, c.refused == "", response.Allowed)
			if c.refused != "" {
				require.Contains(t, response.Result.Message, c.refused)
				require.Equal(t, int32(http.StatusUnprocessableEntity), response.Result.Code)
			}
			require.Contains(t, strings.Join(response.Warnings, ""), c.warned)
		})
	}
}
