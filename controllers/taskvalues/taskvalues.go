// Package taskvalues reads the values that tasks name instead of saying them: keys of Secrets
// and ConfigMaps, and fields of pods. It reads them from the API server when a task is sent,
// and keeps none: a cache of Secrets would ask for the right to read all of them, and hold
// what nobody has asked for. No error of it holds a value. The task reconciler calls it.
package taskvalues

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/opensandbox/operator/api/v1alpha1"
	"github.com/opensandbox/operator/controllers/shardtask"
)

// ReaderRole is the ClusterRole that lets the operator read Secrets and ConfigMaps where an
// administrator binds it. It is bound nowhere else.
const ReaderRole = "opensandbox-task-values-reader"

// readTimeout bounds a read that tasks share.
const readTimeout = 10 * time.Second

// Reader reads objects that hold values. Tasks of a batch mostly name the same ones and are
// sent together: those that ask while a read is under way share the next one, so that each
// gets what the object holds after it has asked.
type Reader struct {
	live client.Reader
	own  []types.NamespacedName

	mu     sync.Mutex // guards queues
	queues map[object]*queue
}

// New returns a Reader that reads by live, which must not be a cache. It does not read the
// Secrets own, which the operator may read for itself.
func New(live client.Reader, own []types.NamespacedName) *Reader {
	return &Reader{live: live, own: own, queues: map[object]*queue{}}
}

// object is one that holds values.
type object struct {
	kind shardtask.ValueKind
	name types.NamespacedName
}

// queue is the read of an object that is under way, and the one that comes next.
type queue struct{ running, next *read }

// read is what a read has found, once done is closed.
type read struct {
	done chan struct{}
	data map[string][]byte
	err  error
}

// For returns the values of the task that is sent to a pod. An object that the task names
// more than once is read once. It is not safe for concurrent use.
func (r *Reader) For(ctx context.Context, pod types.NamespacedName, uid types.UID) shardtask.Values {
	return &values{Reader: r, ctx: ctx, pod: pod, uid: uid, objects: map[object]*read{}}
}

// values are those of one task.
type values struct {
	*Reader
	ctx     context.Context //nolint:containedctx // of one dispatch, as the values are
	pod     types.NamespacedName
	uid     types.UID
	objects map[object]*read
	found   *corev1.Pod
}

// Key implements shardtask.Values.
func (v *values) Key(kind shardtask.ValueKind, ref *v1alpha1.KeyRef) ([]byte, bool, error) {
	o := object{kind, types.NamespacedName{Namespace: v.pod.Namespace, Name: ref.Name}}
	read := v.objects[o]
	if read == nil {
		read = v.share(v.ctx, o)
		v.objects[o] = read
	}
	optional := ref.Optional != nil && *ref.Optional
	if apierrors.IsNotFound(read.err) {
		if optional {
			return nil, false, nil
		}
		return nil, false, &shardtask.ValueError{Reason: v1alpha1.ReasonValuesNotFound,
			Message: fmt.Sprintf("there is no %s %s in namespace %s", kind, ref.Name, v.pod.Namespace)}
	}
	if read.err != nil {
		return nil, false, notReadable(o, read.err)
	}
	value, found := read.data[ref.Key]
	if !found && !optional {
		return nil, false, &shardtask.ValueError{Reason: v1alpha1.ReasonValuesNotFound,
			Message: fmt.Sprintf("%s %s of namespace %s has no key %q", kind, ref.Name, v.pod.Namespace, ref.Key)}
	}
	return value, found, nil
}

func notReadable(o object, err error) error {
	message := fmt.Sprintf("%s %s of namespace %s cannot be read: %v", o.kind, o.name.Name, o.name.Namespace, err)
	if apierrors.IsForbidden(err) {
		message = fmt.Sprintf("namespace %s has no RoleBinding of ClusterRole %s to the operator's service account: %v", o.name.Namespace, ReaderRole, err)
	}
	return &shardtask.ValueError{Reason: v1alpha1.ReasonValuesNotReadable, Message: message}
}

// share reads the object, or waits for a read that has not begun yet.
func (r *Reader) share(ctx context.Context, o object) *read {
	r.mu.Lock()
	q := r.queues[o]
	if q == nil {
		q = &queue{}
		r.queues[o] = q
	}
	if next := q.next; next != nil {
		r.mu.Unlock()
		<-next.done // bounded, as is the one before it
		return next
	}
	mine, before := &read{done: make(chan struct{})}, q.running
	q.next = mine
	r.mu.Unlock()
	if before != nil {
		<-before.done
	}
	r.mu.Lock()
	q.running, q.next = mine, nil
	r.mu.Unlock()
	// Others wait for it, so it does not end with the task of the one that has begun it.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), readTimeout)
	defer cancel()
	mine.data, mine.err = r.get(ctx, o)
	r.mu.Lock()
	q.running = nil
	if q.next == nil {
		delete(r.queues, o)
	}
	r.mu.Unlock()
	close(mine.done)
	return mine
}

func (r *Reader) get(ctx context.Context, o object) (map[string][]byte, error) {
	if o.kind == shardtask.KindSecret {
		if slices.Contains(r.own, o.name) {
			return nil, fmt.Errorf("it is the operator's own")
		}
		secret := &corev1.Secret{}
		err := r.live.Get(ctx, o.name, secret)
		return secret.Data, err
	}
	found := &corev1.ConfigMap{}
	if err := r.live.Get(ctx, o.name, found); err != nil {
		return nil, err
	}
	data := found.BinaryData
	if data == nil {
		data = make(map[string][]byte, len(found.Data))
	}
	for key, text := range found.Data {
		data[key] = []byte(text)
	}
	return data, nil
}

// keyed is a field path with a key: which map of the pod's metadata, and the key.
var keyed = regexp.MustCompile(`^metadata\.(labels|annotations)\['([^']+)'\]$`)

// Field implements shardtask.Values. The cache keeps few fields of a pod, so it is read live,
// but for what is known without: a batch has thousands of pods, and mostly their names are asked
// for.
func (v *values) Field(path string) (string, error) {
	switch path {
	case "metadata.name":
		return v.pod.Name, nil
	case "metadata.namespace":
		return v.pod.Namespace, nil
	case "metadata.uid":
		return string(v.uid), nil
	}
	if v.found == nil {
		pod := &corev1.Pod{}
		if err := v.live.Get(v.ctx, v.pod, pod); err != nil {
			return "", &shardtask.ValueError{Reason: v1alpha1.ReasonValuesNotReadable, Message: fmt.Sprintf("pod %s cannot be read: %v", v.pod.Name, err)}
		}
		if pod.UID != v.uid {
			return "", &shardtask.ValueError{Reason: v1alpha1.ReasonValuesNotReadable, Message: fmt.Sprintf("pod %s is another one now", v.pod.Name)}
		}
		v.found = pod
	}
	return fieldOf(v.found, path), nil
}

// fieldOf returns a field as the kubelet gives it to a container.
func fieldOf(pod *corev1.Pod, path string) string {
	if parts := keyed.FindStringSubmatch(path); parts != nil {
		if parts[1] == "labels" {
			return pod.Labels[parts[2]]
		}
		return pod.Annotations[parts[2]]
	}
	switch path {
	case "spec.nodeName":
		return pod.Spec.NodeName
	case "spec.serviceAccountName":
		return pod.Spec.ServiceAccountName
	case "status.hostIP":
		return pod.Status.HostIP
	case "status.podIP":
		return pod.Status.PodIP
	case "status.hostIPs":
		var ips []string
		for _, ip := range pod.Status.HostIPs {
			ips = append(ips, ip.IP)
		}
		return strings.Join(ips, ",")
	case "status.podIPs":
		var ips []string
		for _, ip := range pod.Status.PodIPs {
			ips = append(ips, ip.IP)
		}
		return strings.Join(ips, ",")
	}
	return ""
}
