package pool

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/util/intstr"
	"pgregory.net/rapid"

	"github.com/opensandbox/operator/api/v1alpha1"
	"github.com/opensandbox/operator/controllers/ledger"
)

// world is a pool whose plans are carried out.
type world struct {
	*rapid.T
	spec   *v1alpha1.PoolSpec
	demand int
	pods   []ledger.PodState
	memory Memory
	now    time.Time
	made   int
	// sick makes every new pod fail for ever.
	sick bool
	// stuck pods never become ready and never say why; toStick is how many new pods will
	// be so.
	stuck       map[string]bool
	toStick     int
	alwaysStuck bool
	// toEnd is how many pods will end by themselves.
	toEnd int
	// refusing is how many passes the API server refuses creates.
	refusing int

	creates, deletes int
}

func drawSpec(t *rapid.T) *v1alpha1.PoolSpec {
	n := rapid.Int32Range(0, 30)
	spec := &v1alpha1.PoolSpec{}
	c := &spec.CapacitySpec
	c.PoolMax = n.Draw(t, "poolMax")
	c.PoolMin = rapid.Int32Range(0, c.PoolMax).Draw(t, "poolMin")
	c.BufferMin = rapid.Int32Range(0, c.PoolMax).Draw(t, "bufferMin")
	c.BufferMax = c.BufferMin + n.Draw(t, "bufferMax over bufferMin")
	limit := rapid.SampledFrom([]string{"", "1", "3", "1%", "40%", "100%"})
	spec.ScaleStrategy.MaxUnavailable = parseLimit(limit.Draw(t, "scale limit"))
	limit = rapid.SampledFrom([]string{"", "0", "1", "3", "0%", "1%", "40%", "100%"})
	spec.UpdateStrategy.MaxUnavailable = parseLimit(limit.Draw(t, "update limit"))
	return spec
}

func parseLimit(s string) *intstr.IntOrString {
	if s == "" {
		return nil
	}
	value := intstr.Parse(s)
	return &value
}

func drawWorld(t *rapid.T) *world {
	w := &world{T: t, spec: drawSpec(t), now: now}
	w.demand = rapid.IntRange(0, 40).Draw(t, "demand")
	w.memory = Memory{Created: map[string]time.Time{}, Deleted: map[string]time.Time{}}
	w.toStick = rapid.IntRange(0, 10).Draw(t, "new pods that get stuck")
	w.toEnd = rapid.IntRange(0, 5).Draw(t, "pods that will end")
	states := rapid.SampledFrom([]ledger.State{
		ledger.Creating, ledger.Idle, ledger.Idle, ledger.Idle, ledger.Held, ledger.Releasing, ledger.Retiring, ledger.SetAside,
	})
	for range rapid.IntRange(0, 50).Draw(t, "pods") {
		pod := w.newPod(outdatedRev)
		pod.State = states.Draw(t, "state")
		if rapid.Bool().Draw(t, "current") {
			pod.Revision = currentRev
		}
		pod.Created = now.Add(-time.Duration(rapid.IntRange(0, 7200).Draw(t, "age")) * time.Second)
		if pod.State != ledger.Creating {
			pod.Ready = rapid.Bool().Draw(t, "ready")
			pod.Finished = !pod.Ready && rapid.IntRange(0, 5).Draw(t, "finished") == 0
			pod.Evict = rapid.IntRange(0, 9).Draw(t, "evict") == 0
			switch {
			case pod.Ready:
				pod.ReadySince = pod.Created.Add(time.Duration(rapid.IntRange(0, 60).Draw(t, "start")) * time.Second)
			case rapid.Bool().Draw(t, "problem"):
				pod.Problem = "ErrImagePull: no such image"
			case rapid.Bool().Draw(t, "stuck"):
				w.stick(&pod)
			}
		}
		w.pods = append(w.pods, pod)
	}
	return w
}

func (w *world) stick(pod *ledger.PodState) {
	if w.stuck == nil {
		w.stuck = map[string]bool{}
	}
	w.stuck[pod.Name] = true
}

func (w *world) newPod(revision string) ledger.PodState {
	w.made++
	pod := ledger.PodState{State: ledger.Creating, Confirmed: true}
	pod.Name = fmt.Sprintf("pod-%d", w.made)
	pod.PoolUID, pod.Revision = poolUID, revision
	return pod
}

func (w *world) live() int {
	n := 0
	for i := range w.pods {
		if w.pods[i].Live() {
			n++
		}
	}
	return n
}

func (w *world) decide() Plan {
	return Decide(&Input{
		Pods: w.pods, Demand: w.demand, Spec: w.spec, UID: poolUID, Revision: currentRev, Now: w.now, Memory: w.memory,
	})
}

// step makes one plan, checks and carries it out, lets pods get on, and says
// whether anything was done or is to come.
func (w *world) step() bool {
	plan := w.decide()
	for _, name := range plan.Retire {
		i := slices.IndexFunc(w.pods, func(p ledger.PodState) bool { return p.Name == name })
		if i < 0 || w.pods[i].State != ledger.Idle {
			w.Fatalf("retires %s, which is not idle", name)
		}
		w.pods = slices.Delete(w.pods, i, i+1)
		w.deletes++
	}
	for _, pod := range plan.Delete {
		w.pods = slices.DeleteFunc(w.pods, func(p ledger.PodState) bool { return p.Name == pod.Name })
	}
	// The cache shows what was created before.
	moved := false
	for i := range w.pods {
		moved = w.progress(&w.pods[i]) || moved
	}
	w.memory.Replaced, w.memory.ReplacedAt = plan.Replaced, plan.ReplacedAt
	w.create(&plan)
	if most := max(int(w.spec.CapacitySpec.PoolMax), 0); plan.Create > 0 && w.live() > most {
		w.Fatalf("grows to %d live pods, poolMax is %d", w.live(), most)
	}
	busy := plan.Create+len(plan.Retire)+len(plan.Delete)+len(plan.Repeat)+len(plan.Verify) > 0 || plan.Probe
	if !busy && plan.Wait > 0 && !slices.ContainsFunc(w.pods, func(p ledger.PodState) bool { return w.starts(&p) }) {
		w.now = w.now.Add(plan.Wait)
	} else {
		w.now = w.now.Add(time.Second)
	}
	return busy || moved || plan.Wait > 0 || slices.ContainsFunc(w.pods, func(p ledger.PodState) bool {
		return p.State == ledger.Creating || (p.State == ledger.Idle && !p.Ready)
	})
}

func (w *world) create(plan *Plan) {
	if plan.Create == 0 && !plan.Probe && len(plan.Repeat) == 0 {
		return
	}
	if w.refusing > 0 {
		w.refusing--
		w.memory.CreateFailures++
		w.memory.RetryAt = w.now.Add(createDelay(w.memory.CreateFailures))
		return
	}
	w.memory.CreateFailures, w.memory.RetryAt, w.memory.Accepted = 0, time.Time{}, currentRev
	for range plan.Create {
		pod := w.newPod(currentRev)
		w.memory.Created[pod.Name] = w.now
		w.pods = append(w.pods, pod)
		w.creates++
	}
}

// progress lets the cache and the kubelet get on with a pod, and says whether they did.
func (w *world) progress(pod *ledger.PodState) bool {
	before := *pod
	switch {
	case pod.State == ledger.Creating:
		pod.State, pod.UID, pod.Created = ledger.Idle, "uid", w.now
		if w.alwaysStuck {
			w.stick(pod)
		}
		if w.toStick > 0 && rapid.Bool().Draw(w.T, "gets stuck") {
			w.toStick--
			w.stick(pod)
		}
		if w.sick {
			pod.Problem = "ErrImagePull: no such image"
		}
	case w.starts(pod):
		// Nobody takes longer than half a minute.
		if pod.Ready = w.now.Sub(pod.Created) >= 30*time.Second || rapid.Bool().Draw(w.T, "becomes ready"); pod.Ready {
			pod.ReadySince = w.now
		}
	case pod.State == ledger.Idle && pod.Ready && w.toEnd > 0 && rapid.IntRange(0, 9).Draw(w.T, "ends") == 0:
		w.toEnd--
		pod.Ready, pod.Finished, pod.Problem = false, true, "PodSucceeded"
	}
	return *pod != before
}

// starts says that an idle pod is on its way to be ready.
func (w *world) starts(pod *ledger.PodState) bool {
	return pod.State == ledger.Idle && !pod.Ready && !pod.Finished && pod.Problem == "" && !w.stuck[pod.Name]
}

func TestAnyPoolUnderConstantDemandComesToRest(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := drawWorld(t)
		w.refusing = rapid.IntRange(0, 5).Draw(t, "refusals")
		steps := 0
		for w.step() {
			if steps++; steps > 2000 {
				t.Fatalf("still not at rest: %+v", w.decide())
			}
		}
		w.checkRest()
	})
}

// checkRest says what a pool at rest looks like.
func (w *world) checkRest() {
	bounds := w.spec.CapacitySpec
	var held, idle, ready, old int
	for i := range w.pods {
		pod := &w.pods[i]
		switch {
		case pod.State == ledger.Idle:
			idle++
			if pod.Ready {
				ready++
			}
			if pod.Revision == outdatedRev {
				old++
			}
		case pod.Live():
			held++
		}
	}
	total := held + idle
	if ready != idle {
		w.Fatalf("%d of %d idle pods are ready", ready, idle)
	}
	if total < int(bounds.PoolMin) {
		w.Fatalf("%d pods, poolMin is %d", total, bounds.PoolMin)
	}
	if total > int(bounds.PoolMax) && idle > 0 {
		w.Fatalf("%d pods of which %d are idle, poolMax is %d", total, idle, bounds.PoolMax)
	}
	spare := idle - w.demand
	if spare < int(bounds.BufferMin) && total < int(bounds.PoolMax) {
		w.Fatalf("%d idle pods for a demand of %d, bufferMin is %d", idle, w.demand, bounds.BufferMin)
	}
	if spare > int(bounds.BufferMax) && total > int(bounds.PoolMin) {
		w.Fatalf("%d idle pods for a demand of %d, bufferMax is %d", idle, w.demand, bounds.BufferMax)
	}
	if limit := w.spec.UpdateStrategy.MaxUnavailable; old > 0 && ready > w.demand && (limit == nil || scaled(limit, 100) > 0) {
		w.Fatalf("%d idle pods are outdated, %d are ready for a demand of %d", old, ready, w.demand)
	}
}

// A pool whose pods can never start must not make and delete pods without end.
func TestAPoolThatCannotStartIsCalm(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := &world{T: t, spec: drawSpec(t), now: now, sick: true}
		w.demand = rapid.IntRange(0, 40).Draw(t, "demand")
		w.memory = Memory{Created: map[string]time.Time{}, Deleted: map[string]time.Time{}}
		for end := now.Add(2 * time.Hour); w.now.Before(end); {
			if !w.step() {
				break
			}
		}
		// Rounds after 1, 2, 4, 8 minutes and then every 10, a quarter of the pods each.
		size := w.live()
		most := 17 * (size/4 + 1)
		if w.deletes > most || w.creates > size+most {
			t.Fatalf("%d creates and %d deletes in two hours for %d pods", w.creates, w.deletes, size)
		}
	})
}

// Pods are made in place of those that never become ready, but a pool whose pods never do
// must not go on until it has poolMax of them.
func TestAPoolThatCannotStartDoesNotGrowAndGrow(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		size := rapid.Int32Range(1, 40).Draw(t, "size")
		w := &world{T: t, now: now, spec: &v1alpha1.PoolSpec{CapacitySpec: v1alpha1.CapacitySpec{BufferMin: size, BufferMax: size, PoolMax: 10000}}}
		if w.sick = rapid.Bool().Draw(t, "they say why"); !w.sick {
			w.alwaysStuck = true
		}
		w.memory = Memory{Created: map[string]time.Time{}, Deleted: map[string]time.Time{}}
		for end := now.Add(6 * time.Hour); w.now.Before(end); w.step() {
			if most := 6*int(size) + 6; w.live() > most {
				t.Fatalf("%d pods after %s, the pool is to have %d", w.live(), w.now.Sub(now), size)
			}
		}
	})
}

// While a pool is updated, no more idle pods are missing or not ready than its
// strategy lets, and it keeps its size.
func TestAnUpdateKeepsThePoolServing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := &world{T: t, spec: drawSpec(t), now: now}
		w.memory = Memory{Created: map[string]time.Time{}, Deleted: map[string]time.Time{}}
		c := &w.spec.CapacitySpec
		least := max(c.BufferMin, c.PoolMin)
		if least > min(max(c.BufferMax, c.PoolMin), c.PoolMax) {
			t.Skip("no idle pool of this spec is at rest")
		}
		idle := int(rapid.Int32Range(least, min(max(c.BufferMax, c.PoolMin), c.PoolMax)).Draw(t, "idle"))
		for range idle {
			pod := w.newPod(outdatedRev)
			pod.State, pod.Ready, pod.UID, pod.Created = ledger.Idle, true, "uid", now.Add(-time.Hour)
			w.pods = append(w.pods, pod)
		}
		limit := w.spec.UpdateStrategy.MaxUnavailable
		if limit == nil {
			limit = &defaultUpdateMaxUnavailable
		}
		for steps := 0; w.step(); steps++ {
			ready := 0
			for i := range w.pods {
				if w.pods[i].Ready {
					ready++
				}
			}
			if missing := idle - ready; missing > scaled(limit, idle) {
				t.Fatalf("%d of %d idle pods are missing, allowed are %d", missing, idle, scaled(limit, idle))
			}
			if len(w.pods) != idle {
				t.Fatalf("the pool of %d has %d pods", idle, len(w.pods))
			}
			if steps > 1000 {
				t.Fatal("the update does not end")
			}
		}
		w.checkRest()
	})
}
