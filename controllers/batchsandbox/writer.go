package batchsandbox

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/opensandbox/operator/api/v1alpha1"
	"github.com/opensandbox/operator/controllers/apiwrite"
)

const (
	// writeTimeout bounds one write to the API server. What became of a write that takes
	// longer is unclear.
	writeTimeout = 10 * time.Second
	// conflictPause is how long the cache gets to show what another write has changed.
	conflictPause = 100 * time.Millisecond
)

// outcome is what is known after a write.
type outcome int

const (
	// done: the API server has answered the new version.
	done outcome = iota
	// notSent: the lease is not fresh, so another leader may be at work.
	notSent
	// refused: the API server did not do the write and never will.
	refused
	// tooLarge: refused, because the object would be larger than the API server can store.
	tooLarge
	// overtaken: the object has another version or is gone. That may be the work of this
	// very write: client-go repeats a request by itself where the server asks for it.
	overtaken
	// unclear: it may have been done, or may still be done.
	unclear
)

func outcomeOf(err error) outcome {
	switch {
	case err == nil:
		return done
	case apierrors.IsConflict(err), apierrors.IsNotFound(err):
		return overtaken
	case apiwrite.TooLarge(err):
		return tooLarge
	case apiwrite.Refused(err):
		return refused
	}
	return unclear
}

// patch is a change of one version of a BatchSandbox. Sending it twice does it once: the
// version is a precondition.
type patch struct {
	version string
	body    []byte
	status  bool
}

// metadataPatch sets fields of the metadata, which are made of strings.
func metadataPatch(bs *v1alpha1.BatchSandbox, fields map[string]any) patch {
	return objectPatch(bs, fields, nil)
}

// objectPatch sets fields of the metadata and of the spec, which are made of strings.
func objectPatch(bs *v1alpha1.BatchSandbox, fields, spec map[string]any) patch {
	fields["resourceVersion"] = bs.ResourceVersion
	object := map[string]any{"metadata": fields}
	if spec != nil {
		object["spec"] = spec
	}
	body, err := json.Marshal(object)
	if err != nil {
		panic(err) // strings can always be marshalled
	}
	return patch{version: bs.ResourceVersion, body: body}
}

// statusPatch makes the status what is wanted. It compares the statuses only: the rest of
// the object, which may take a megabyte, stays as it is.
func statusPatch(bs *v1alpha1.BatchSandbox, want *v1alpha1.BatchSandboxStatus) (patch, error) {
	change, err := fieldsOf(want)
	if err != nil {
		return patch{}, err
	}
	is, err := fieldsOf(&bs.Status)
	if err != nil {
		return patch{}, err
	}
	for name, value := range is {
		if wanted, ok := change[name]; !ok {
			change[name] = json.RawMessage("null")
		} else if bytes.Equal(wanted, value) {
			delete(change, name)
		}
	}
	body, err := json.Marshal(map[string]any{"metadata": map[string]string{"resourceVersion": bs.ResourceVersion}, "status": change})
	if err != nil {
		return patch{}, fmt.Errorf("building a patch of the status: %w", err)
	}
	return patch{version: bs.ResourceVersion, body: body, status: true}, nil
}

func fieldsOf(status *v1alpha1.BatchSandboxStatus) (map[string]json.RawMessage, error) {
	data, err := json.Marshal(status)
	fields := map[string]json.RawMessage{}
	if err == nil {
		err = json.Unmarshal(data, &fields)
	}
	if err != nil {
		return nil, fmt.Errorf("building a patch of the status: %w", err)
	}
	return fields, nil
}

// writer is the one writer of BatchSandboxes: every patch of one, and its deletion, goes
// through it. It sends nothing without a fresh lease, bounds each call in time, changes
// only the version that the caller has seen, and says what is known afterwards.
type writer struct {
	client client.Client
	live   client.Reader
	fresh  func() error
}

// send sends a patch. When that is done, the object goes on with the answer.
func (w *writer) send(ctx context.Context, o *object, p patch) (outcome, error) {
	if err := w.fresh(); err != nil {
		return notSent, err
	}
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	answer := &v1alpha1.BatchSandbox{ObjectMeta: metav1.ObjectMeta{
		Namespace: o.bs.Namespace, Name: o.bs.Name, UID: o.bs.UID, ResourceVersion: p.version,
	}}
	change := client.RawPatch(types.MergePatchType, p.body)
	var err error
	if p.status {
		err = w.client.Status().Patch(ctx, answer, change)
	} else {
		err = w.client.Patch(ctx, answer, change)
	}
	if err == nil {
		o.take(answer)
	}
	return outcomeOf(err), err
}

// delete deletes the version of the object that was seen.
func (w *writer) delete(ctx context.Context, o *object) (outcome, error) {
	if err := w.fresh(); err != nil {
		return notSent, err
	}
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	err := w.client.Delete(ctx, o.bs, client.Preconditions{UID: &o.bs.UID, ResourceVersion: &o.bs.ResourceVersion})
	return outcomeOf(err), err
}

// readBack returns the object as the API server has it, or nil where it is gone. The
// next reconcile starts from that version at the earliest.
func (w *writer) readBack(ctx context.Context, o *object) (*v1alpha1.BatchSandbox, error) {
	live := &v1alpha1.BatchSandbox{}
	err := w.live.Get(ctx, client.ObjectKeyFromObject(o.bs), live)
	switch {
	case apierrors.IsNotFound(err), err == nil && live.UID != o.bs.UID:
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("reading the object back: %w", err)
	}
	o.newest.Note(live)
	return live, nil
}

// lookAgain takes in what somebody else has made of the object, which the cache may show
// late, and returns when to come back.
func (w *writer) lookAgain(ctx context.Context, o *object) time.Duration {
	_, _ = w.readBack(ctx, o) // if it fails, the cache will show it
	return conflictPause
}
