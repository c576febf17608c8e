package webhook

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	admissionv1 "k8s.io/api/admission/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"
)

// What a review may cost. The webhooks answer whoever reaches their port, and what a few
// bytes of JSON become in memory is a hundred times as much: without these bounds a pod
// that posts reviews could end the operator, and the hand-outs with it. A review beyond
// them is not answered, and the API server, which fails open, goes on without.
const (
	// maxReviewBytes holds two objects of the 1.5 MiB that etcd takes, as an update
	// carries them, and what the API server says beside them. (controller-runtime has a
	// bound of its own, of 7 MiB, which no option changes.)
	maxReviewBytes = 3<<20 + 256<<10
	// maxValues of a review, counted by values: 5,000 patches of 20 each.
	maxValues = 100_000
	// maxOfAKind bounds the containers, init containers and volumes of a template, the
	// largest things of a pod: an empty container is three bytes of JSON and four hundred
	// of memory.
	maxOfAKind = 500
	// smallBytes is more than a review of a BatchSandbox that takes its sandboxes from a
	// pool. Such a one waits behind no large one, whose trials may take seconds.
	smallBytes = 16 << 10
	// smallAtOnce and largeAtOnce bound the reviews that are worked on together. Reviews
	// that use up the other bounds take some 60 MiB each: as many of them as may be large
	// leave half of the memory that config/manager gives the operator.
	smallAtOnce, largeAtOnce = 64, 8
	// readTime is left for the body: one that comes drop by drop keeps its place no longer.
	readTime = 3 * time.Second
	// reviewTime is left for a review, waiting included: the longest timeout of the
	// webhooks. Whom the API server no longer waits for is no longer worked for.
	reviewTime = 10 * time.Second
)

// guard is what each review passes before it is decoded. All webhooks share one, since they
// share the memory.
type guard struct {
	small, large chan struct{}
	readTime     time.Duration
}

func newGuard() *guard {
	return &guard{small: make(chan struct{}, smallAtOnce), large: make(chan struct{}, largeAtOnce), readTime: readTime}
}

// before returns a handler that lets through to next what is within the bounds.
func (g *guard) before(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ContentLength > maxReviewBytes {
			tooLarge(w)
			return
		}
		ctx, cancel := context.WithTimeout(r.Context(), reviewTime)
		defer cancel()
		slots := g.large
		if r.ContentLength >= 0 && r.ContentLength <= smallBytes { // -1: not told
			slots = g.small
		}
		select {
		case slots <- struct{}{}:
			defer func() { <-slots }()
		case <-ctx.Done():
			http.Error(w, "too many reviews at a time", http.StatusServiceUnavailable)
			return
		}
		body, err := g.readBody(w, r)
		if tooMany := new(http.MaxBytesError); errors.As(err, &tooMany) {
			tooLarge(w)
			return
		}
		if err == nil {
			err = checkBody(body)
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		r = r.WithContext(ctx)
		r.Body = io.NopCloser(bytes.NewReader(body))
		next.ServeHTTP(w, r)
	})
}

func tooLarge(w http.ResponseWriter) {
	http.Error(w, fmt.Sprintf("a review has at most %d bytes", maxReviewBytes), http.StatusRequestEntityTooLarge)
}

func (g *guard) readBody(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	if err := http.NewResponseController(w).SetReadDeadline(time.Now().Add(g.readTime)); err != nil {
		return nil, fmt.Errorf("bounding the time for the body: %w", err)
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxReviewBytes))
	if err != nil {
		return nil, fmt.Errorf("reading the body: %w", err)
	}
	return body, nil
}

// checkBody finds what the API server never sends. What does not begin as an object would
// be decoded as YAML, which takes far more memory than JSON.
func checkBody(body []byte) error {
	if len(body) == 0 || body[0] != '{' {
		return errors.New("a review is a JSON object")
	}
	if n := values(body); n > maxValues {
		return fmt.Errorf("a review has at most %d values: got %d", maxValues, n)
	}
	return nil
}

// values counts the objects, lists, members and elements of JSON, some of them twice.
func values(text []byte) int {
	count, quoted := 0, false
	for i := 0; i < len(text); i++ {
		switch c := text[i]; {
		case quoted && c == '\\':
			i++
		case c == '"':
			quoted = !quoted
		case !quoted && (c == '{' || c == '[' || c == ','):
			count++
		}
	}
	return count
}

// sized hands on to the handler objects whose templates are within maxOfAKind.
type sized struct{ admission.Handler }

// Handle implements admission.Handler.
func (s sized) Handle(ctx context.Context, req admission.Request) admission.Response {
	now, before := tooMany(req.Object.Raw), tooMany(req.OldObject.Raw)
	text := fmt.Sprintf("must have at most %d items", maxOfAKind)
	switch {
	case now == "" && before == "":
		return s.Handler.Handle(ctx, req)
	case before == "":
		status := invalid(req.Kind.Kind, req.Name, metav1.StatusCause{Type: metav1.CauseTypeFieldValueInvalid, Field: now, Message: text}).ErrStatus
		return admission.Response{AdmissionResponse: admissionv1.AdmissionResponse{Result: &status}}
	default: // it is there: it can be deleted, and its finalizers come off
		return admission.Allowed("").WithWarnings(fmt.Sprintf("%s: %s, so that nothing was checked", before, text))
	}
}

// tooMany returns the field of the object's template that has more than maxOfAKind.
func tooMany(object []byte) string {
	var counted struct {
		Spec struct {
			Template struct {
				Spec struct {
					Containers          items `json:"containers"`
					InitContainers      items `json:"initContainers"`
					EphemeralContainers items `json:"ephemeralContainers"`
					Volumes             items `json:"volumes"`
				} `json:"spec"`
			} `json:"template"`
		} `json:"spec"`
	}
	_ = json.Unmarshal(object, &counted) // what has another type is told by others
	pod := counted.Spec.Template.Spec
	switch field := templateField + ".spec."; {
	case pod.Containers > maxOfAKind:
		return field + "containers"
	case pod.InitContainers > maxOfAKind:
		return field + "initContainers"
	case pod.EphemeralContainers > maxOfAKind:
		return field + "ephemeralContainers"
	case pod.Volumes > maxOfAKind:
		return field + "volumes"
	}
	return ""
}

// items counts the elements of a list without keeping them. Where JSON names the list more
// than once, it counts them all: a decoder would have made them all.
type items int

// UnmarshalJSON implements json.Unmarshaler.
func (n *items) UnmarshalJSON(list []byte) error {
	var elements []struct{}
	_ = json.Unmarshal(list, &elements) // what is no list has none
	*n += items(len(elements))
	return nil
}
