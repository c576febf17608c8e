package batchsandbox

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/opensandbox/operator/api/v1alpha1"
	"github.com/opensandbox/operator/controllers/ledger"
	"github.com/opensandbox/operator/controllers/podtemplate"
)

// candidate is a Pool that a BatchSandbox which names none might take from.
type candidate struct {
	name string
	// lacks is the first thing that the pool has not and that is asked for; empty: it fits.
	lacks string
	// room is what the pool has for the BatchSandbox.
	room    ledger.Room
	poolMax int
	// stuck: the pool cannot make pods now.
	stuck bool
}

// growsTo is how many pods the pool may come to have: none more where it cannot make any.
func (c *candidate) growsTo() int {
	if c.stuck {
		return 0
	}
	return c.poolMax
}

// mostLater is how many sandboxes the pool can serve once it has grown.
func (c *candidate) mostLater() int { return c.room.Later(c.growsTo()) }

// stuck says that the pool cannot make pods now, as far as its status knows.
func stuck(pool *v1alpha1.Pool) bool {
	ready := meta.FindStatusCondition(pool.Status.Conditions, v1alpha1.ConditionReady)
	return ready != nil && (ready.Reason == v1alpha1.ReasonTemplateInvalid || ready.Reason == v1alpha1.ReasonCreateFailed)
}

// prospect is what a candidate can do for those who ask.
type prospect int

const (
	allNow      prospect = iota // all pods are available
	allLater                    // those that lack can be made
	someLater                   // fewer than all are there even then
	neverEnough                 // there are never so many at once
)

func (c *candidate) prospect(want, least int) prospect {
	switch {
	case c.room.Spare >= want:
		return allNow
	case c.poolMax < least:
		return neverEnough
	case c.mostLater() >= want:
		return allLater
	}
	return someLater
}

// choose returns the pool to take so many sandboxes from, at least so many of them at once: of
// those that can serve all of them now the one with the fewest left over, so that larger ones
// stay whole; else of those that can grow to all of them the one that has to make the fewest
// pods; else the one that can serve most. A pool that can never have so many at once comes last.
// Of two that are alike the first by name is taken, so that the choice stays. Without one that
// fits it says what each lacks.
func choose(candidates []candidate, want, least int) (*candidate, *blocked) {
	fitting := slices.DeleteFunc(slices.Clone(candidates), func(c candidate) bool { return c.lacks != "" })
	if len(fitting) == 0 {
		return nil, &blocked{v1alpha1.ReasonPoolNotFound, noneFits(candidates)}
	}
	best := slices.MinFunc(fitting, func(a, b candidate) int {
		return cmp.Or(compareRoom(&a, &b, want, least), cmp.Compare(a.name, b.name))
	})
	return &best, nil
}

func compareRoom(a, b *candidate, want, least int) int {
	pa, pb := a.prospect(want, least), b.prospect(want, least)
	if pa != pb {
		return cmp.Compare(pa, pb)
	}
	switch pa {
	case allNow:
		return cmp.Compare(a.room.Spare, b.room.Spare)
	case allLater:
		return cmp.Compare(b.room.Coming, a.room.Coming)
	case someLater:
		return cmp.Compare(b.mostLater(), a.mostLater())
	}
	return cmp.Compare(b.poolMax, a.poolMax)
}

func noneFits(candidates []candidate) string {
	if len(candidates) == 0 {
		return "spec.poolRef: the namespace has no Pool; waiting for one"
	}
	slices.SortFunc(candidates, func(a, b candidate) int { return cmp.Compare(a.name, b.name) })
	reasons := make([]string, len(candidates))
	for i := range candidates {
		reasons[i] = candidates[i].name + ": " + candidates[i].lacks
	}
	return "spec.poolRef: no Pool of the namespace fits; waiting for one (" + strings.Join(reasons, "; ") + ")"
}

// lacks returns the first thing that the BatchSandbox asks for and the pool has not, or
// nothing where the pool fits.
func lacks(bs *v1alpha1.BatchSandbox, pool *v1alpha1.Pool, executor *podtemplate.Executor) string {
	if pool.DeletionTimestamp != nil {
		return "it is being deleted"
	}
	for _, key := range slices.Sorted(maps.Keys(bs.Spec.PoolSelector)) {
		if value, there := pool.Labels[key]; !there || value != bs.Spec.PoolSelector[key] {
			return fmt.Sprintf("label %s=%s", key, bs.Spec.PoolSelector[key])
		}
	}
	if pool.Spec.Template.Check() != nil || pool.Spec.Template == nil {
		return "a template that can be read"
	}
	if bs.Spec.TaskTemplate != nil && !podtemplate.HasExecutor(pool.Spec.Template) && executor.InjectsInto(pool) == podtemplate.InjectNothing {
		return "a task executor"
	}
	if bs.Spec.Template == nil {
		return ""
	}
	if err := bs.Spec.Template.Check(); err != nil {
		return "what is asked for: " + err.Error()
	}
	return podLacks(&bs.Spec.Template.Spec, &pool.Spec.Template.Spec, sandboxContainer(bs.Spec.Template), sandboxContainer(pool.Spec.Template))
}

// podLacks compares what the pods must have; all else of the template that asks is not looked at.
func podLacks(need, has *corev1.PodSpec, needed, offered *corev1.Container) string {
	if class := need.RuntimeClassName; class != nil && (has.RuntimeClassName == nil || *has.RuntimeClassName != *class) {
		return "runtimeClassName " + *class
	}
	for _, key := range slices.Sorted(maps.Keys(need.NodeSelector)) {
		if value, there := has.NodeSelector[key]; !there || value != need.NodeSelector[key] {
			return fmt.Sprintf("nodeSelector %s=%s", key, need.NodeSelector[key])
		}
	}
	for i := range need.Tolerations {
		if !slices.ContainsFunc(has.Tolerations, func(t corev1.Toleration) bool { return equality.Semantic.DeepEqual(t, need.Tolerations[i]) }) {
			return "a toleration of " + cmp.Or(need.Tolerations[i].Key, "all taints")
		}
	}
	switch {
	case needed == nil:
		return ""
	case offered == nil:
		return "a sandbox container"
	case needed.Image != "" && needed.Image != offered.Image:
		return "image " + needed.Image
	}
	asked, got := requests(needed), requests(offered)
	for _, name := range slices.Sorted(maps.Keys(asked)) {
		if least, there := asked[name], got[name]; there.Cmp(least) < 0 {
			return fmt.Sprintf("%s of %s", least.String(), name)
		}
	}
	return ""
}

// requests are those of the container; the API server takes limits for those that it lacks.
func requests(c *corev1.Container) map[corev1.ResourceName]resource.Quantity {
	all := map[corev1.ResourceName]resource.Quantity{}
	maps.Copy(all, c.Resources.Limits)
	maps.Copy(all, c.Resources.Requests)
	return all
}

// sandboxContainer is the one that tasks run in, or nil.
func sandboxContainer(t *v1alpha1.PodTemplate) *corev1.Container {
	name := podtemplate.TaskContainer(&corev1.Pod{ObjectMeta: t.ObjectMeta, Spec: t.Spec})
	for i := range t.Spec.Containers {
		if t.Spec.Containers[i].Name == name {
			return &t.Spec.Containers[i]
		}
	}
	return nil
}
