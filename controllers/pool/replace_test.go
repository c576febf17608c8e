package pool

import (
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/opensandbox/operator/api/v1alpha1"
	"github.com/opensandbox/operator/controllers/ledger"
	"github.com/opensandbox/operator/controllers/podfeed"
)

func TestDecideReplace(t *testing.T) {
	day := aged(24 * time.Hour)
	runCases(t, []planCase{
		{
			name: "an evicted idle pod goes at once", spec: capacity(2, 2, 0, 20),
			pods: groups{pods(2), pods(1, called("e"), evicted)}, retire: []string{"e0"},
		},
		{
			name: "an evicted idle pod is replaced when the buffer needs it", spec: capacity(2, 2, 0, 20),
			pods: groups{pods(1), pods(1, called("e"), evicted)}, retire: []string{"e0"}, create: 1,
		},
		{
			name: "an evicted held pod stays", spec: capacity(0, 2, 0, 20),
			pods: groups{pods(1, evicted, in(ledger.Held))},
		},
		{
			name: "an idle pod of an earlier Pool of the name goes", spec: capacity(0, 2, 0, 20),
			pods:   groups{pods(1, called("x"), func(p *ledger.PodState) { p.PoolUID = "other" })},
			retire: []string{"x0"},
		},
		{
			name: "a finished idle pod goes, also where the buffer can do without",
			spec: capacity(1, 5, 0, 20), pods: groups{pods(2), pods(1, called("f"), finished)}, retire: []string{"f0"},
		},
		{
			name: "finished pods go a part at a time, and others are made for all of them",
			spec: capacity(9, 9, 0, 20), pods: groups{pods(9, called("f"), finished)}, create: 9,
			retire: []string{"f0", "f1", "f2"},
		},
		{
			name: "those that have finished are no live pods and leave poolMax its room",
			spec: capacity(9, 9, 0, 9), pods: groups{pods(9, called("f"), finished)}, create: 9,
			retire: []string{"f0", "f1", "f2"},
		},
		{
			name: "the first pod that finishes at once is replaced at once",
			spec: capacity(1, 1, 0, 20), pods: groups{pods(1, finished, aged(time.Second))}, retire: []string{"0"}, create: 1,
			wait: 59 * time.Second,
		},
		{
			name: "the second one waits",
			spec: capacity(1, 1, 0, 20), pods: groups{pods(1, finished, aged(100*time.Second))},
			memory: Memory{Replaced: 1, ReplacedAt: now.Add(-100 * time.Second)}, wait: 20 * time.Second,
		},
		{
			name: "and then a part goes",
			spec: capacity(2, 2, 0, 20), pods: groups{pods(2, finished, aged(100*time.Second))},
			memory: Memory{Replaced: 1, ReplacedAt: now.Add(-2 * time.Minute)}, retire: []string{"0"}, create: 1, wait: 20 * time.Second,
		},
		{
			name: "a held pod that has ended is not touched, and counts",
			spec: capacity(1, 1, 0, 2), pods: groups{pods(1, in(ledger.Held), finished)}, create: 1,
		},
		{
			name: "a failing pod is replaced when it is a minute old",
			spec: capacity(1, 1, 0, 20), pods: groups{pods(1, failing("ErrImagePull"), aged(time.Minute))},
			retire: []string{"0"}, create: 1,
		},
		{
			name: "after two rounds it has to be four minutes old",
			spec: capacity(1, 1, 0, 20), pods: groups{pods(1, failing("ErrImagePull"), aged(time.Minute))},
			memory: Memory{Replaced: 2, ReplacedAt: now.Add(-time.Minute)}, wait: 3 * time.Minute,
		},
		{
			name: "after many rounds ten minutes, and no more",
			spec: capacity(1, 1, 0, 20), pods: groups{pods(1, failing("ErrImagePull"), aged(10*time.Minute))},
			memory: Memory{Replaced: 1000, ReplacedAt: now.Add(-10 * time.Minute)}, retire: []string{"0"}, create: 1,
		},
		{
			name: "a quarter of the idle pods at a time, the oldest first",
			spec: capacity(8, 8, 0, 20), pods: groups{pods(8, failing("CrashLoopBackOff"))},
			retire: []string{"0", "1"}, create: 8,
		},
		{
			name: "a failing pod's successor does not wait for the others to get ready",
			spec: growing(capacity(4, 4, 0, 20), "1"), pods: groups{pods(4, failing("CrashLoopBackOff"))},
			retire: []string{"0"}, create: 1,
		},
		{
			name: "rounds are apart also when other pods are old",
			spec: capacity(8, 8, 0, 20), pods: groups{pods(6, failing("CrashLoopBackOff")), pods(8, called("new"), starting)},
			memory: Memory{Replaced: 1, ReplacedAt: now.Add(-10 * time.Second)}, wait: 50 * time.Second,
		},
		{
			name:   "a pod that was made since and stays ready ends the delay",
			spec:   capacity(2, 2, 0, 20),
			pods:   groups{pods(1, called("good"), aged(2*time.Minute)), pods(1, called("bad"), failing("ErrImagePull"), aged(2*time.Minute))},
			memory: Memory{Replaced: 5, ReplacedAt: now.Add(-3 * time.Minute)}, retire: []string{"bad0"}, create: 1,
		},
		{
			name: "a pod that crashes and comes back does not",
			spec: capacity(2, 2, 0, 20), wait: 8 * time.Minute,
			pods: groups{
				pods(1, called("flaps"), aged(2*time.Minute), func(p *ledger.PodState) { p.Restarts = 3 }),
				pods(1, called("bad"), failing("ErrImagePull"), aged(2*time.Minute)),
			},
			memory: Memory{Replaced: 5, ReplacedAt: now.Add(-2 * time.Minute)},
		},
		{
			name: "a pod that waits for a node is kept: a new one would wait as well",
			spec: capacity(1, 1, 0, 20), pods: groups{pods(1, failing("Unschedulable: 0/3 nodes are available"), day)},
		},
		{
			name: "while creates fail, failing pods are kept",
			spec: capacity(1, 1, 0, 20), pods: groups{pods(1, failing("ErrImagePull"), day)},
			memory: Memory{CreateFailures: 1, RetryAt: now.Add(time.Second)}, wait: time.Second,
		},
	})
}

// Demand does not wait for pods that never become ready.
func TestDecideOverdue(t *testing.T) {
	minute := aged(time.Minute)
	runCases(t, []planCase{
		{
			name: "overdue pods are no part of the pool's size: others are made in their place",
			spec: capacity(5, 15, 0, 40), pods: groups{pods(15, notReady)}, demand: 5,
			retire: []string{"0", "1", "2", "3"}, create: 15,
		},
		{
			name: "poolMax counts every live pod, so that others are made as those go",
			spec: capacity(5, 15, 0, 15), pods: groups{pods(15, notReady)}, demand: 5,
			retire: []string{"0", "1", "2", "3"}, create: 4,
		},
		{
			name: "and they go in rounds",
			spec: capacity(5, 15, 0, 15), pods: groups{pods(11, notReady), pods(4, called("new"), starting)}, demand: 5,
			memory: Memory{Replaced: 1, ReplacedAt: now.Add(-10 * time.Second)}, wait: 50 * time.Second,
		},
		{
			name: "where poolMax leaves no room they go before other failing pods",
			spec: capacity(4, 4, 0, 4), pods: groups{pods(2, called("slow"), notReady, aged(2*time.Minute)), pods(2, called("bad"), failing("ErrImagePull"), aged(61*time.Second), took(0))},
			retire: []string{"slow0"}, create: 1,
		},
		{
			name: "a pool over poolMax loses them at once, and first of all",
			spec: capacity(2, 4, 0, 4), pods: groups{pods(3), pods(5, called("slow"), notReady)},
			memory: Memory{Replaced: 3, ReplacedAt: now}, retire: []string{"slow1", "slow2", "slow3", "slow4"}, wait: 8 * time.Minute,
		},
		{
			name: "a pod is overdue after a minute", spec: capacity(1, 1, 0, 9), pods: groups{pods(1, notReady, minute)},
			retire: []string{"0"}, create: 1,
		},
		{
			name: "and not before", spec: capacity(1, 1, 0, 9), pods: groups{pods(1, notReady, aged(59*time.Second))},
			wait: time.Second,
		},
		{
			name: "pods that usually take half a minute may take five times that",
			spec: capacity(4, 4, 0, 9), pods: groups{pods(3, called("r"), took(30*time.Second)), pods(1, notReady, aged(2*time.Minute))},
			wait: 30 * time.Second,
		},
		{
			name: "and no longer",
			spec: capacity(4, 4, 0, 9), pods: groups{pods(3, called("r"), took(30*time.Second)), pods(1, notReady, aged(150*time.Second))},
			retire: []string{"0"}, create: 1,
		},
		{
			name: "a few that took long, and those that have restarted, do not count",
			spec: capacity(6, 6, 0, 9), pods: groups{
				pods(3, called("r"), took(time.Second)), pods(1, called("l"), took(time.Hour)),
				pods(1, called("c"), took(time.Hour), func(p *ledger.PodState) { p.Restarts = 1 }), pods(1, notReady, minute)},
			retire: []string{"0"}, create: 1,
		},
		{
			name: "held pods tell as well what is usual",
			spec: capacity(1, 1, 0, 9), pods: groups{pods(3, in(ledger.Held), took(time.Minute)), pods(1, notReady, minute)},
			wait: 4 * time.Minute,
		},
		{
			name: "a pod made since the last round may take as long as the rounds are apart, so that a pool that cannot start does not grow and grow",
			spec: capacity(1, 1, 0, 9), pods: groups{pods(1, notReady, aged(3*time.Minute))},
			memory: Memory{Replaced: 2, ReplacedAt: now.Add(-3 * time.Minute)}, wait: time.Minute,
		},
		{
			name: "a pod that waits for a node is never overdue: another one would wait as well",
			spec: capacity(1, 1, 0, 9), pods: groups{pods(1, failing("Unschedulable: 0/3 nodes are available"))}, demand: 0,
		},
		{
			name: "spec.scaleStrategy does not count them as not ready",
			spec: growing(capacity(4, 4, 0, 20), "2"), pods: groups{pods(4, notReady)}, retire: []string{"0"}, create: 2,
		},
		{
			name: "a template whose pods are never ready does not take the ready ones away",
			spec: updating(capacity(1, 4, 0, 20), "1"), pods: groups{pods(2, called("old"), outdated), pods(1, called("new"), notReady)},
			memory: Memory{Accepted: currentRev, Replaced: 1, ReplacedAt: now}, wait: 2 * time.Minute,
		},
		{
			name: "outdated ones go at once when the template is mended",
			spec: capacity(4, 4, 0, 20), pods: groups{pods(4, outdated, notReady)}, memory: Memory{Accepted: currentRev, Replaced: 1, ReplacedAt: now},
			retire: []string{"0", "1", "2", "3"}, create: 4, wait: 2 * time.Minute,
		},
		{
			name: "a pool that is deleted retires them", spec: capacity(1, 1, 0, 9), deleting: true,
			pods: groups{pods(2, notReady)}, retire: []string{"0", "1"},
		},
	})
}

// How long a pod has been starting does not depend on how long it had waited for its node,
// nor on how old it was when it ceased to be ready.
func TestAPodIsOverdueForTheTimeThatItHasBeenStarting(t *testing.T) {
	idle := func(restarts int32, conditions ...corev1.PodCondition) ledger.PodState {
		pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "0", UID: "uid", CreationTimestamp: metav1.NewTime(now.Add(-time.Hour)),
			Labels: map[string]string{v1alpha1.LabelPoolRevision: currentRev}}}
		pod.Status.Conditions, pod.Status.ContainerStatuses = conditions, []corev1.ContainerStatus{{RestartCount: restarts}}
		return ledger.PodState{Pod: podfeed.Facts(pod, poolUID), State: ledger.Idle}
	}
	condition := func(kind corev1.PodConditionType, status corev1.ConditionStatus, ago time.Duration) corev1.PodCondition {
		return corev1.PodCondition{Type: kind, Status: status, LastTransitionTime: metav1.NewTime(now.Add(-ago))}
	}
	scheduled := condition(corev1.PodScheduled, corev1.ConditionTrue, 59*time.Minute)
	spec := capacity(1, 1, 0, 9)
	runCases(t, []planCase{
		{
			name: "a pod that got its node a moment ago, after a long wait", spec: spec,
			pods: groups{{idle(0, condition(corev1.PodScheduled, corev1.ConditionTrue, 10*time.Second))}}, wait: 50 * time.Second,
		},
		{
			name: "a pod that was ready a moment ago, as one whose node was not heard of", spec: spec,
			pods: groups{{idle(0, scheduled, condition(corev1.PodReady, corev1.ConditionFalse, 10*time.Second))}}, wait: 50 * time.Second,
		},
		{
			name: "a pod that has not been ready for a minute", spec: spec,
			pods:   groups{{idle(0, scheduled, condition(corev1.PodReady, corev1.ConditionFalse, time.Minute))}},
			retire: []string{"0"}, create: 1,
		},
		{
			name: "a pod that crashes is ready in between, which does not count", spec: spec,
			pods:   groups{{idle(1, scheduled, condition(corev1.PodReady, corev1.ConditionFalse, 10*time.Second))}},
			retire: []string{"0"}, create: 1,
		},
	})
}

func TestDecideUpdate(t *testing.T) {
	accepted := Memory{Accepted: currentRev}
	held := pods(8, in(ledger.Held))
	runCases(t, []planCase{
		{
			name: "a quarter of the idle pods is replaced at a time, the oldest first",
			spec: capacity(8, 8, 0, 20), pods: groups{pods(8, outdated)}, memory: accepted,
			retire: []string{"0", "1"}, create: 2,
		},
		{
			name: "the pool keeps its size inside the buffer's bounds",
			spec: capacity(2, 10, 0, 20), pods: groups{pods(10, outdated)}, memory: accepted,
			retire: []string{"0", "1", "2"}, create: 3,
		},
		{
			name: "pods that are not ready yet use the limit up",
			spec: capacity(8, 8, 0, 20), pods: groups{pods(6, outdated), pods(2, called("new"), starting)},
			wait: 50 * time.Second,
		},
		{
			name: "a missing pod uses the limit up",
			spec: updating(capacity(8, 8, 0, 20), "1"), pods: groups{pods(7, outdated)}, memory: accepted, create: 1,
		},
		{
			name: "outdated pods that are not ready go at once",
			spec: updating(capacity(4, 4, 0, 20), "1"), pods: groups{pods(4, outdated, notReady)}, memory: accepted,
			retire: []string{"0", "1", "2", "3"}, create: 4,
		},
		{
			name: "a limit of 0 pauses the update",
			spec: updating(capacity(4, 4, 0, 20), "0"), pods: groups{pods(2, outdated, starting), pods(2, called("r"), outdated)}, memory: accepted,
			wait: 50 * time.Second,
		},
		{
			name: "a small percentage is one",
			spec: updating(capacity(4, 4, 0, 20), "1%"), pods: groups{pods(4, outdated)}, memory: accepted,
			retire: []string{"0"}, create: 1,
		},
		{
			name: "held pods are left alone and do not count",
			spec: capacity(4, 4, 0, 20), pods: groups{held, pods(4, called("i"), outdated)}, memory: accepted,
			retire: []string{"i0"}, create: 1,
		},
		{
			name: "ready pods that demand needs are kept",
			spec: updating(capacity(0, 4, 0, 20), "100%"), pods: groups{pods(4, outdated)}, demand: 3, memory: accepted,
			retire: []string{"0"}, create: 1,
		},
		{
			name: "no more is taken away than may be made",
			spec: growing(updating(capacity(8, 8, 0, 20), "100%"), "2"), pods: groups{pods(8, outdated)}, memory: accepted,
			retire: []string{"0", "1"}, create: 2,
		},
		{
			name: "before the first pod goes, the new template is tried out",
			spec: capacity(8, 8, 0, 20), pods: groups{pods(8, outdated)}, probe: true,
		},
		{
			name: "a pod of the revision is proof enough",
			spec: capacity(8, 8, 0, 20), pods: groups{pods(7, outdated), pods(1, called("new"))},
			retire: []string{"0", "1"}, create: 2,
		},
		{
			name: "while creates fail nothing is replaced",
			spec: capacity(8, 8, 0, 20), pods: groups{pods(8, outdated)},
			memory: Memory{Accepted: currentRev, CreateFailures: 3, RetryAt: now.Add(time.Second)}, wait: time.Second,
		},
		{
			name: "after failed creates one is replaced to find out",
			spec: capacity(8, 8, 0, 20), pods: groups{pods(8, outdated, starting)},
			memory: Memory{Accepted: currentRev, CreateFailures: 3, RetryAt: now},
			retire: []string{"0"}, create: 1, wait: 50 * time.Second,
		},
		{
			name: "also where all of them are overdue",
			spec: capacity(8, 8, 0, 8), pods: groups{pods(8, outdated, notReady)},
			memory: Memory{Accepted: currentRev, CreateFailures: 3, RetryAt: now},
			retire: []string{"0"}, create: 1,
		},
		{
			name: "an update and a shrink do not mix: the surplus goes first",
			spec: capacity(2, 2, 0, 20), pods: groups{pods(3, outdated)}, memory: accepted, retire: []string{"2"},
		},
	})
}

func TestDecideDeletion(t *testing.T) {
	runCases(t, []planCase{
		{
			name: "a pool that is deleted retires all idle pods and creates none",
			spec: capacity(5, 5, 5, 20), deleting: true, demand: 4,
			pods:   groups{pods(1, called("i")), pods(1, called("f"), finished, aged(0)), pods(2, called("h"), in(ledger.Held)), pods(1, called("t"), terminating)},
			retire: []string{"i0", "f0"},
		},
		{
			name: "and looks up the pods that may have been created",
			spec: capacity(5, 5, 5, 20), deleting: true,
			pods:   groups{pods(1, called("c"), creating), pods(1, called("d"), creating, confirmed)},
			memory: Memory{Created: map[string]time.Time{"d0": now}},
			verify: []string{"c0"}, wait: unseenPatience,
		},
		{
			name: "a retiring pod is deleted", spec: capacity(0, 0, 0, 0),
			pods: groups{pods(1, in(ledger.Retiring))}, delete: []string{"0"},
		},
		{
			name: "a retiring pod is not deleted twice while the cache is late", spec: capacity(0, 0, 0, 0),
			pods:   groups{pods(1, in(ledger.Retiring))},
			memory: Memory{Deleted: map[string]time.Time{"0": now.Add(-time.Second)}}, wait: unseenPatience - time.Second,
		},
		{
			name: "a retiring pod whose end never shows is deleted again", spec: capacity(0, 0, 0, 0),
			pods:   groups{pods(1, in(ledger.Retiring))},
			memory: Memory{Deleted: map[string]time.Time{"0": now.Add(-unseenPatience)}}, delete: []string{"0"},
		},
		{
			name: "a terminating pod is left to the kubelet", spec: capacity(0, 0, 0, 0),
			pods: groups{pods(1, in(ledger.Retiring), terminating)},
		},
	})
}
