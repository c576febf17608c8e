package pool

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/opensandbox/operator/api/v1alpha1"
	"github.com/opensandbox/operator/controllers/ledger"
)

var key = ledger.Key{Namespace: "ns", Name: "warm"}

func TestAStateBelongsToOneObject(t *testing.T) {
	s := &states{}
	first := s.of(key, "a")
	assert.Same(t, first, s.of(key, "a"))
	assert.NotSame(t, first, s.of(key, "b"), "a new Pool of the same name starts anew")
	s.drop(key)
	assert.NotSame(t, first, s.of(key, "a"))
}

func TestFollow(t *testing.T) {
	pool := &v1alpha1.Pool{ObjectMeta: metav1.ObjectMeta{Generation: 1}}
	st := &state{}
	st.follow(pool, nil)
	first := st.revision
	troubled := func() {
		st.memory = Memory{CreateFailures: 3, RetryAt: now, Replaced: 4, ReplacedAt: now}
		st.failure = &failure{}
	}

	troubled()
	st.follow(pool, nil)
	assert.Equal(t, 3, st.memory.CreateFailures, "the same generation changes nothing")

	pool.Generation, pool.Spec.CapacitySpec.PoolMax = 2, 5
	st.follow(pool, nil)
	assert.Zero(t, st.memory.CreateFailures, "a new size is tried at once")
	assert.Equal(t, 4, st.memory.Replaced, "but failing pods are no better for it")
	assert.Equal(t, first, st.revision)

	troubled()
	pool.Generation = 3
	pool.Spec.Template = updatedTemplate()
	st.follow(pool, nil)
	assert.Zero(t, st.memory.Replaced, "a new template starts anew")
	assert.Nil(t, st.failure)
	assert.NotEqual(t, first, st.revision)
}

func TestKeepUp(t *testing.T) {
	earlier := now.Add(-time.Second)
	st := &state{memory: Memory{
		Created: map[string]time.Time{"under-way0": earlier, "seen0": earlier, "gone": earlier},
		Deleted: map[string]time.Time{"ours0": earlier, "gone": earlier},
	}}
	groups := [][]ledger.PodState{
		pods(1, called("under-way"), creating), pods(1, called("seen")),
		pods(1, called("ours"), in(ledger.Retiring)),
		pods(1, called("others"), in(ledger.Retiring), func(p *ledger.PodState) { p.Deleted = true }),
	}
	var all []ledger.PodState
	for _, group := range groups {
		all = append(all, group...)
	}
	st.keepUp(all, now)
	assert.Equal(t, map[string]time.Time{"under-way0": earlier}, st.memory.Created)
	assert.Equal(t, map[string]time.Time{"ours0": earlier, "others0": now}, st.memory.Deleted,
		"a deletion that the batchsandbox reconciler has sent is not sent again")
}

func TestIsDone(t *testing.T) {
	retiring := in(ledger.Retiring)
	cases := []struct {
		name    string
		pods    []ledger.PodState
		holders int
		want    bool
	}{
		{"nothing is left", nil, 0, true},
		{"pods are on their way out", append(pods(1, called("sent"), retiring), pods(1, called("t"), terminating)...), 0, true},
		{"a delete was not taken yet", pods(1, called("failed"), retiring), 0, false},
		{"a pod may have been created", pods(1, creating), 0, false},
		{"a held pod has ended and its holder has not let go", pods(1, in(ledger.Held), terminating), 1, false},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			p := &pass{state: &state{uid: types.UID("uid"), memory: Memory{Deleted: map[string]time.Time{"sent0": now}}}}
			assert.Equal(t, c.want, p.isDone(ledger.Snapshot{Pods: c.pods, Holders: c.holders}))
		})
	}
}

func TestTheStatusIsWrittenAtOnceWhileChangesAreRare(t *testing.T) {
	st := &state{}
	at := now
	for range statusBurst {
		assert.Zero(t, st.statusEarly(at), "a burst is written at once")
		st.noteStatus(at)
	}
	for range 3 {
		assert.Equal(t, statusInterval, st.statusEarly(at), "then one an interval")
		at = at.Add(statusInterval)
		assert.Zero(t, st.statusEarly(at))
		st.noteStatus(at)
	}
	at = at.Add(time.Hour)
	for range statusBurst {
		assert.Zero(t, st.statusEarly(at), "after a rest as at first")
		st.noteStatus(at)
	}
	assert.Equal(t, statusInterval, st.statusEarly(at))
}
