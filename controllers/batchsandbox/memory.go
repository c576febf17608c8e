package batchsandbox

import (
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/resourceversion"

	"github.com/opensandbox/operator/api/v1alpha1"
)

// memo is what this process remembers of one BatchSandbox between reconciles. The
// work queue never reconciles one object twice at a time, so it needs no lock. It
// may be lost at any time without harm to allocations: the annotations and the
// ledger hold those.
type memo struct {
	uid types.UID

	// latest is the answer to the last write, until the cache is at or past it.
	latest *v1alpha1.BatchSandbox
	// pending is an allocation write of which it is not known whether it was done.
	pending *write

	// sent is the last status that was written and answered what the API server
	// made of it: they differ where the installed CRD lacks a field.
	sent, answered *v1alpha1.BatchSandboxStatus
	// full is the version of the object that could take no status any more, and told what
	// its users were told instead.
	full string
	told *v1alpha1.BatchSandboxStatus

	allocationWritten, statusWritten time.Time

	// creations are template-mode pods that were created and that the cache does not show yet.
	creations map[string]*creation
	// failures count, by shard, the template-mode pods that ended.
	failures map[int32]*failure
}

// creation is a pod whose creation was sent.
type creation struct {
	shard int32
	// confirmed: the API server has answered that it was created.
	confirmed bool
	sent      time.Time
}

// failure is how often, and when last, the pod of a shard has ended.
type failure struct {
	pod   types.UID
	count int
	at    time.Time
}

// freshest returns the newer of the cached object and the answer to the last write.
func (m *memo) freshest(cached *v1alpha1.BatchSandbox) (*v1alpha1.BatchSandbox, error) {
	if m.latest == nil {
		return cached, nil
	}
	order, err := resourceversion.CompareResourceVersion(cached.ResourceVersion, m.latest.ResourceVersion)
	if err != nil {
		return nil, err
	}
	if order >= 0 {
		m.latest = nil
		return cached, nil
	}
	return m.latest.DeepCopy(), nil
}

// memory holds the memos. The zero value is ready to use.
type memory struct {
	mu    sync.Mutex // guards memos
	memos map[types.NamespacedName]*memo
}

// of returns the memo of an object; one of an earlier object of that name is dropped.
func (m *memory) of(name types.NamespacedName, uid types.UID) *memo {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.memos == nil {
		m.memos = map[types.NamespacedName]*memo{}
	}
	if found := m.memos[name]; found != nil && found.uid == uid {
		return found
	}
	fresh := &memo{uid: uid, creations: map[string]*creation{}, failures: map[int32]*failure{}}
	m.memos[name] = fresh
	return fresh
}

func (m *memory) forget(name types.NamespacedName) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.memos, name)
}
