package pool

import (
	"maps"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/types"

	"github.com/opensandbox/operator/api/v1alpha1"
	"github.com/opensandbox/operator/controllers/apiwrite"
	"github.com/opensandbox/operator/controllers/ledger"
	"github.com/opensandbox/operator/controllers/podtemplate"
)

// states holds what the reconciler remembers of each pool between passes. The
// controller runs one pass over a pool at a time, so a state needs no lock.
type states struct {
	mu    sync.Mutex // guards byKey
	byKey map[ledger.Key]*state
}

// state is what is remembered of one Pool object.
type state struct {
	uid    types.UID
	memory Memory
	// createdMu guards memory.Created while the creates of a pass run.
	createdMu sync.Mutex

	// revision is the hash of the template that the object has at generation.
	generation int64
	revision   string

	// verdict says whether pods of the revision can be restarted in place; nil is unknown.
	verdict *podtemplate.Verdict

	// failure is why pods could not be created at the last try, or nil.
	failure *failure

	// newest is the newest version of the object that is known.
	newest apiwrite.Newest[*v1alpha1.Pool]
	// sent is the status of our last status write, answered what the API server made
	// of it: less, when the installed CRD lacks a field.
	sent, answered *v1alpha1.PoolStatus
	// statusPaid is until when the writes of the status would have lasted, one an interval.
	statusPaid time.Time
}

func (s *states) of(key ledger.Key, uid types.UID) *state {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.byKey == nil {
		s.byKey = map[ledger.Key]*state{}
	}
	st := s.byKey[key]
	if st == nil || st.uid != uid {
		st = &state{uid: uid, memory: Memory{Created: map[string]time.Time{}, Deleted: map[string]time.Time{}}}
		s.byKey[key] = st
	}
	return st
}

func (s *states) drop(key ledger.Key) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.byKey, key)
}

// follow takes in the object's spec. A change is a reason to try at once what
// failed before.
func (s *state) follow(pool *v1alpha1.Pool, executor *podtemplate.Executor) {
	if s.generation == pool.Generation && s.revision != "" {
		return
	}
	s.generation = pool.Generation
	s.memory.CreateFailures, s.memory.RetryAt = 0, time.Time{}
	revision := podtemplate.PoolRevision(pool, executor)
	if revision == s.revision {
		return
	}
	s.revision = revision
	s.memory.Replaced, s.memory.ReplacedAt = 0, time.Time{}
	s.failure, s.verdict = nil, nil
}

// statusEarly is how long the next write of the status has to wait; 0 is not at all.
func (s *state) statusEarly(now time.Time) time.Duration {
	return max(0, s.statusPaid.Add(-(statusBurst-1)*statusInterval).Sub(now))
}

// noteStatus takes in that the status is about to be written.
func (s *state) noteStatus(now time.Time) {
	if s.statusPaid.Before(now) {
		s.statusPaid = now
	}
	s.statusPaid = s.statusPaid.Add(statusInterval)
}

// noteCreated may be called by several creates of a pass at a time.
func (s *state) noteCreated(name string, at time.Time) {
	s.createdMu.Lock()
	defer s.createdMu.Unlock()
	s.memory.Created[name] = at
}

// keepUp drops what is remembered of pods that are no longer there, and remembers
// the deletions that others have sent.
func (s *state) keepUp(pods []ledger.PodState, now time.Time) {
	creating, retiring := map[string]bool{}, map[string]bool{}
	for i := range pods {
		switch pod := &pods[i]; pod.State {
		case ledger.Creating:
			creating[pod.Name] = true
		case ledger.Retiring:
			retiring[pod.Name] = true
			if _, known := s.memory.Deleted[pod.Name]; pod.Deleted && !known {
				s.memory.Deleted[pod.Name] = now
			}
		}
	}
	maps.DeleteFunc(s.memory.Created, func(name string, _ time.Time) bool { return !creating[name] })
	maps.DeleteFunc(s.memory.Deleted, func(name string, _ time.Time) bool { return !retiring[name] })
}

// shownStatus is the status to go on from: the one that was sent, as long as the
// object still has what the API server made of it.
func (s *state) shownStatus(pool *v1alpha1.Pool) *v1alpha1.PoolStatus {
	if s.sent != nil && equality.Semantic.DeepEqual(&pool.Status, s.answered) {
		return s.sent
	}
	return &pool.Status
}
