package pool

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/opensandbox/operator/api/v1alpha1"
	"github.com/opensandbox/operator/controllers/ledger"
)

const (
	poolUID     = types.UID("pool")
	currentRev  = "current"
	outdatedRev = "outdated"
)

var now = time.Date(2030, 1, 1, 12, 0, 0, 0, time.UTC)

// pods returns n pods of the kind that the options make of a ready, idle, day-old one.
func pods(n int, options ...func(*ledger.PodState)) []ledger.PodState {
	result := make([]ledger.PodState, n)
	for i := range result {
		pod := &result[i]
		pod.State = ledger.Idle
		pod.UID, pod.PoolUID, pod.Revision = "uid", poolUID, currentRev
		pod.Ready = true
		pod.Created = now.Add(-24*time.Hour + time.Duration(i)*time.Second)
		for _, option := range options {
			option(pod)
		}
		pod.Name = fmt.Sprintf("%s%d", pod.Name, i)
	}
	return result
}

func called(name string) func(*ledger.PodState) {
	return func(p *ledger.PodState) { p.Name = name }
}
func in(state ledger.State) func(*ledger.PodState) {
	return func(p *ledger.PodState) { p.State = state }
}
func aged(age time.Duration) func(*ledger.PodState) {
	return func(p *ledger.PodState) { p.Created = now.Add(-age) }
}
func failing(reason string) func(*ledger.PodState) {
	return func(p *ledger.PodState) { p.Ready, p.Problem = false, reason }
}
func starting(p *ledger.PodState) { p.Ready, p.Created = false, now.Add(-10*time.Second) }
func notReady(p *ledger.PodState) { p.Ready = false }
func took(d time.Duration) func(*ledger.PodState) {
	return func(p *ledger.PodState) { p.ReadySince = p.Created.Add(d) }
}
func outdated(p *ledger.PodState)    { p.Revision = outdatedRev }
func finished(p *ledger.PodState)    { p.Ready, p.Finished, p.Problem = false, true, "PodFailed" }
func evicted(p *ledger.PodState)     { p.Evict = true }
func terminating(p *ledger.PodState) { p.Terminating = true }
func creating(p *ledger.PodState) {
	p.State, p.Ready, p.UID, p.Created = ledger.Creating, false, "", time.Time{}
}
func confirmed(p *ledger.PodState) { p.Confirmed, p.UID = true, "uid" }

func capacity(bufferMin, bufferMax, poolMin, poolMax int32) *v1alpha1.PoolSpec {
	return &v1alpha1.PoolSpec{CapacitySpec: v1alpha1.CapacitySpec{
		BufferMin: bufferMin, BufferMax: bufferMax, PoolMin: poolMin, PoolMax: poolMax,
	}}
}

func growing(spec *v1alpha1.PoolSpec, limit string) *v1alpha1.PoolSpec {
	value := intstr.Parse(limit)
	spec.ScaleStrategy.MaxUnavailable = &value
	return spec
}

func updating(spec *v1alpha1.PoolSpec, limit string) *v1alpha1.PoolSpec {
	value := intstr.Parse(limit)
	spec.UpdateStrategy.MaxUnavailable = &value
	return spec
}

type planCase struct {
	name   string
	spec   *v1alpha1.PoolSpec
	pods   [][]ledger.PodState
	demand int
	memory Memory

	deleting bool

	create int
	retire []string
	repeat []string
	verify []string
	delete []string
	probe  bool
	wait   time.Duration
}

func (c *planCase) run(t *testing.T) {
	t.Helper()
	input := &Input{
		Demand: c.demand, Spec: c.spec, UID: poolUID, Revision: currentRev,
		Deleting: c.deleting, Now: now, Memory: c.memory,
	}
	for _, group := range c.pods {
		input.Pods = append(input.Pods, group...)
	}
	plan := Decide(input)
	var deleted []string
	for _, pod := range plan.Delete {
		deleted = append(deleted, pod.Name)
	}
	assert.Equal(t, c.create, plan.Create, "creates")
	assert.ElementsMatch(t, c.retire, plan.Retire, "retired")
	assert.ElementsMatch(t, c.repeat, plan.Repeat, "repeated")
	assert.ElementsMatch(t, c.verify, plan.Verify, "verified")
	assert.ElementsMatch(t, c.delete, deleted, "deleted")
	assert.Equal(t, c.probe, plan.Probe, "probe")
	assert.Equal(t, c.wait, plan.Wait, "wait")
}

func runCases(t *testing.T, cases []planCase) {
	t.Helper()
	for i := range cases {
		t.Run(cases[i].name, cases[i].run)
	}
}

type groups = [][]ledger.PodState

func TestDecideSize(t *testing.T) {
	runCases(t, []planCase{
		{name: "an empty pool goes to the middle of its buffer", spec: capacity(2, 10, 5, 20), create: 6},
		{name: "an empty pool goes to poolMin if that is more", spec: capacity(2, 4, 9, 20), create: 9},
		{name: "an empty pool stops at poolMax", spec: capacity(2, 10, 0, 4), create: 4},
		{name: "the middle is rounded up", spec: capacity(2, 5, 0, 20), create: 4},
		{name: "a pool of nothing stays empty", spec: capacity(0, 0, 0, 0)},
		{name: "inside the buffer's bounds nothing happens", spec: capacity(2, 10, 0, 20), pods: groups{pods(2)}},
		{name: "at the upper bound nothing happens", spec: capacity(2, 10, 0, 20), pods: groups{pods(10)}},
		{name: "inside the bounds and below poolMin it grows to poolMin", spec: capacity(2, 10, 5, 20), pods: groups{pods(3)}, create: 2},
		{
			name: "held, releasing and set-aside pods count as allocated",
			spec: capacity(2, 4, 0, 20), create: 3,
			pods: groups{pods(3, in(ledger.Held)), pods(2, in(ledger.Releasing)), pods(1, in(ledger.SetAside))},
		},
		{
			name: "held pods leave room up to poolMax",
			spec: capacity(5, 5, 0, 8), pods: groups{pods(6, in(ledger.Held))}, create: 2,
		},
		{
			name: "demand is filled and the buffer kept behind it",
			spec: capacity(2, 4, 0, 100), pods: groups{pods(3)}, demand: 10, create: 10,
		},
		{
			name: "demand that the idle pods can meet with the buffer to spare creates nothing",
			spec: capacity(2, 10, 0, 100), pods: groups{pods(5)}, demand: 3,
		},
		{
			name: "terminating, gone and retiring pods do not count",
			spec: capacity(2, 2, 0, 10), create: 2, delete: []string{"r0"},
			pods: groups{
				pods(2, called("a"), terminating),
				pods(1, called("b"), in(ledger.Held), func(p *ledger.PodState) { p.Gone = true }),
				pods(1, called("r"), in(ledger.Retiring)),
			},
		},
		{
			name: "pods under way count, so that a late cache creates nothing twice",
			spec: capacity(5, 5, 0, 10), pods: groups{pods(5, creating, confirmed)},
			memory: Memory{Created: map[string]time.Time{"0": now, "1": now, "2": now, "3": now, "4": now}},
			wait:   unseenPatience,
		},
		{
			name: "pods with problems count, so that a pool that cannot start does not grow",
			spec: capacity(5, 5, 0, 10), pods: groups{pods(5, failing("ErrImagePull: x"), aged(10*time.Second))},
			wait: 50 * time.Second,
		},
		{
			name: "poolMax below the held pods ends nothing but the idle ones",
			spec: capacity(0, 5, 0, 2), pods: groups{pods(4, in(ledger.Held)), pods(1, called("idle"))},
			retire: []string{"idle0"},
		},
		{
			name: "poolMax below the held pods stops growth",
			spec: capacity(1, 5, 0, 2), pods: groups{pods(4, in(ledger.Held))}, demand: 7,
		},
	})
}

func TestDecideGrowth(t *testing.T) {
	runCases(t, []planCase{
		{name: "maxUnavailable bounds the creates", spec: growing(capacity(10, 10, 0, 10), "3"), create: 3},
		{
			name: "pods that are not ready yet use it up",
			spec: growing(capacity(10, 10, 0, 10), "3"), pods: groups{pods(2, starting)}, create: 1, wait: 50 * time.Second,
		},
		{
			name: "pods under way use it up",
			spec: growing(capacity(10, 10, 0, 10), "3"), pods: groups{pods(3, creating, confirmed)},
			memory: Memory{Created: map[string]time.Time{"0": now, "1": now, "2": now}}, wait: unseenPatience,
		},
		{
			name: "held pods that are not ready do not",
			spec: growing(capacity(10, 10, 0, 20), "3"), pods: groups{pods(5, in(ledger.Held), notReady)}, create: 3,
		},
		{name: "a percentage is of the target, rounded up", spec: growing(capacity(10, 10, 0, 10), "25%"), create: 3},
		{name: "a small percentage is one", spec: growing(capacity(10, 10, 0, 10), "1%"), create: 1},
		{
			name: "after a failed create the next waits",
			spec: capacity(3, 3, 0, 10), memory: Memory{CreateFailures: 1, RetryAt: now.Add(2 * time.Second)},
			pods: groups{pods(1, called("c"), creating)},
			wait: 2 * time.Second,
		},
		{
			name: "then an unconfirmed create is repeated under its name",
			spec: capacity(3, 3, 0, 10), memory: Memory{CreateFailures: 1, RetryAt: now},
			pods: groups{pods(1, called("c"), creating)}, repeat: []string{"c0"}, create: 2,
		},
		{
			name: "an unconfirmed create that is not wanted any more is looked up",
			spec: capacity(0, 0, 0, 10), pods: groups{pods(1, called("c"), creating)}, verify: []string{"c0"},
		},
		{
			name: "a created pod that the cache never shows is looked up",
			spec: capacity(1, 1, 0, 10), pods: groups{pods(1, called("c"), creating, confirmed)},
			memory: Memory{Created: map[string]time.Time{"c0": now.Add(-unseenPatience)}}, verify: []string{"c0"},
		},
	})
}

func TestDecideShrink(t *testing.T) {
	runCases(t, []planCase{
		{
			name: "above the buffer it goes to the middle", spec: capacity(0, 2, 0, 20),
			pods: groups{pods(4)}, retire: []string{"1", "2", "3"},
		},
		{
			name: "pods that are not ready go first, those with a problem before them",
			spec: capacity(2, 2, 0, 20), retire: []string{"starting0", "stuck0"},
			pods: groups{pods(2, called("ready"), outdated), pods(1, called("starting"), notReady), pods(1, called("stuck"), failing("ErrImagePull"), aged(0))},
			wait: time.Minute,
		},
		{
			name: "then those of an outdated revision",
			spec: updating(capacity(2, 2, 0, 20), "0"), retire: []string{"old0"},
			pods: groups{pods(1, called("old"), outdated), pods(2, called("young"), aged(time.Second))},
		},
		{
			name: "then the youngest",
			spec: capacity(2, 2, 0, 20), retire: []string{"young0"},
			pods: groups{pods(1, called("young"), aged(time.Second)), pods(2, called("old"))},
		},
		{
			name: "demand counts against the surplus",
			spec: capacity(0, 2, 0, 20), pods: groups{pods(5)}, demand: 3,
		},
		{
			name: "pods that the cache has not shown take their turn and no ready one goes instead",
			spec: capacity(2, 2, 0, 20), pods: groups{pods(2), pods(1, called("c"), creating, confirmed)},
			memory: Memory{Created: map[string]time.Time{"c0": now}}, wait: unseenPatience,
		},
	})
}
