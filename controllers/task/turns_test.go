package task

import (
	"encoding/json"
	"fmt"
	"math"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"k8s.io/apimachinery/pkg/types"
	"pgregory.net/rapid"

	executorapi "github.com/opensandbox/operator/executor/api"
	executorclient "github.com/opensandbox/operator/executor/client"
)

// TestTurnsProperties has groups ask for turns, give up and be done, in any order.
func TestTurnsProperties(t *testing.T) {
	groups := rapid.Custom(func(t *rapid.T) group {
		return group{
			rapid.SampledFrom([]string{"n1", "n2", "n3"}).Draw(t, "namespace"),
			rapid.SampledFrom([]string{"b1", "b2"}).Draw(t, "batchSandbox"),
			rapid.SampledFrom([]string{firstTry, laterTry}).Draw(t, "try"),
		}
	})
	rapid.Check(t, func(t *rapid.T) {
		all := rapid.IntRange(1, 100).Draw(t, "slots")
		turns := newTurns(all)
		var waiting, running []*ticket
		serve := func() {
			for next := turns.next(); next != nil; next = turns.next() {
				for _, other := range waiting {
					if other.group == next.group && other.arrived < next.arrived {
						t.Fatalf("%v overtook an older one of its group", next.group)
					}
				}
				waiting = without(waiting, next)
				running = append(running, next)
			}
		}
		t.Repeat(map[string]func(*rapid.T){
			"ask": func(t *rapid.T) {
				g := groups.Draw(t, "group")
				for range rapid.SampledFrom([]int{1, 5, 60}).Draw(t, "asked") {
					waiting = append(waiting, turns.wait(g))
				}
				serve()
			},
			"give up": func(t *rapid.T) {
				if len(waiting) == 0 {
					t.Skip()
				}
				left := rapid.SampledFrom(waiting).Draw(t, "who")
				turns.leave(left)
				waiting = without(waiting, left)
				serve()
			},
			"done": func(t *rapid.T) {
				if len(running) == 0 {
					t.Skip()
				}
				ended := rapid.SampledFrom(running).Draw(t, "who")
				turns.done(ended.group)
				running = without(running, ended)
				serve()
			},
			"": func(t *rapid.T) { checkTurns(t, turns, all, waiting, running) },
		})
		for len(running) > 0 { // whatever the order was, everybody's turn comes
			turns.done(running[0].group)
			running = running[1:]
			serve()
		}
		require.Empty(t, waiting)
		require.Empty(t, turns.used)
		require.Empty(t, turns.waiting)
		require.Equal(t, all, turns.free)
	})
}

func checkTurns(t *rapid.T, turns *turns, all int, waiting, running []*ticket) {
	require.Equal(t, all, turns.free+len(running), "no more than there are")
	byNamespace, wants := map[string]int{}, map[string]bool{}
	for _, r := range running {
		byNamespace[r.namespace]++
	}
	for _, w := range waiting {
		wants[w.namespace] = true
		require.False(t, turns.hasRoom(w.group), "a slot is there for one that waits")
	}
	for namespace, n := range byNamespace {
		require.LessOrEqual(t, n, share*all/(share+1)+1, "%s leaves others nothing", namespace)
	}
	if all >= 64 { // and else numbers are too small to be about equal
		for a := range wants {
			require.Greater(t, 3*byNamespace[a]+3, turns.free, "%s waits with %d although %d are free", a, byNamespace[a], turns.free)
		}
	}
}

func without(list []*ticket, one *ticket) []*ticket {
	var rest []*ticket
	for _, t := range list {
		if t != one {
			rest = append(rest, t)
		}
	}
	return rest
}

// serveAll gives slots to all that may have one, and returns how many that were.
func serveAll(turns *turns) int {
	n := 0
	for turns.next() != nil {
		n++
	}
	return n
}

func TestANewcomersTurnIsAtOnceWhateverOthersKeep(t *testing.T) {
	for name, test := range map[string]struct {
		slots, namespaces, batches int
	}{
		"eight slots, one namespace":        {8, 1, 1},
		"eight slots, two namespaces":       {8, 2, 1},
		"the default, one batch":            {256, 1, 1},
		"the default, many batches":         {256, 1, 50},
		"the default, twenty namespaces":    {256, 20, 1},
		"the default, twenty and more each": {256, 20, 5},
	} {
		t.Run(name, func(t *testing.T) {
			turns := newTurns(test.slots)
			for n := range test.namespaces {
				for b := range test.batches {
					for range test.slots { // and none of them ever ends
						turns.wait(group{fmt.Sprint("n", n), fmt.Sprint("b", b), firstTry})
					}
				}
			}
			serveAll(turns)
			least, most := math.MaxInt, 0
			for n := range test.namespaces {
				used := turns.used[group{namespace: fmt.Sprint("n", n)}]
				least, most = min(least, used), max(most, used)
			}
			require.LessOrEqual(t, most-least, 1, "they are equal")
			require.Positive(t, least)
			for _, newcomer := range []group{{"good", "b", firstTry}, {"n0", "good", firstTry}, {"n0", "b0", laterTry}} {
				if newcomer.namespace == "n0" && (test.slots < 64 || test.namespaces > 1 || test.batches > 1) {
					continue // its namespace has had its turn
				}
				w := turns.wait(newcomer)
				require.Same(t, w, turns.next(), "%v", newcomer)
				turns.done(newcomer)
			}
		})
	}
}

func TestTheNamespaceWithTheLeastIsNext(t *testing.T) {
	turns := newTurns(4)
	many := func(namespace, batchSandbox string) { turns.wait(group{namespace, batchSandbox, firstTry}) }
	for range 4 {
		many("a", "1")
	}
	before := serveAll(turns)
	many("b", "1")
	many("b", "1")
	many("b", "2")
	var order []string
	for range 3 {
		if next := turns.next(); next != nil {
			order = append(order, next.namespace+next.batchSandbox)
			continue
		}
		turns.done(group{"a", "1", firstTry})
		next := turns.next()
		require.NotNil(t, next)
		order = append(order, next.namespace+next.batchSandbox)
	}
	require.Equal(t, []string{"b1", "b2", "a1"}, order, "a has %d", before)
}

func TestExecutorsThatDoNotAnswerCostTheirOwnNamespaceItsTurn(t *testing.T) {
	t.Parallel()
	var silent atomic.Int64
	b := newBench(t, func(b *bench, w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(executorapi.Task{ID: taskID(b.bs.UID, 0), State: executorapi.Succeeded})
	})
	// No call ends by itself while the test lasts.
	b.Executors = executorclient.New(executorclient.Options{Timeout: time.Hour, DialTimeout: time.Hour})
	t.Cleanup(b.Executors.Close)
	b.slots = newSlots(8)
	listener, ip := listenAsExecutor(t)
	var accepting sync.WaitGroup
	accepting.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			silent.Add(1)
			defer conn.Close()
		}
	})
	mute := b.bs.DeepCopy()
	mute.Namespace, mute.Name, mute.UID, mute.Spec.PoolRef = "mute", "mute", "mute", ""
	sandboxes := map[int32]sandbox{}
	for i := range int32(24) {
		pod := b.pod.DeepCopy()
		pod.Namespace, pod.Name, pod.UID, pod.Status.PodIP, pod.ResourceVersion = "mute", fmt.Sprint("mute-", i), types.UID(fmt.Sprint("mute-", i)), ip, ""
		require.NoError(t, b.Client.Create(t.Context(), pod))
		require.NoError(t, b.Client.Status().Update(t.Context(), pod))
		sandboxes[i] = sandbox{shard: i, pod: pod.Name, uid: pod.UID, ready: true}
	}
	n := int32(24)
	mute.Spec.Replicas, mute.ResourceVersion = &n, ""
	require.NoError(t, b.Client.Create(t.Context(), mute))
	t.Cleanup(func() {
		b.jobs.drop(types.NamespacedName{Namespace: "mute", Name: "mute"})
		require.NoError(t, listener.Close())
		b.work.Wait()
		accepting.Wait()
	})
	b.apply(mute, b.jobs.of(mute), sandboxes)
	require.Eventually(t, func() bool { return silent.Load() >= 5 }, patience, poll)
	b.follow(t)
	require.Eventually(t, func() bool { return b.Report(b.bs).Completed }, patience, poll)
	require.Equal(t, int32(24), b.Report(mute).Pending)
}
