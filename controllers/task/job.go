package task

import (
	"context"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/opensandbox/operator/api/v1alpha1"
	"github.com/opensandbox/operator/controllers/apiwrite"
	"github.com/opensandbox/operator/controllers/shardtask"
)

// job is what is known of the tasks of one BatchSandbox.
type job struct {
	name types.NamespacedName
	uid  types.UID
	// version is a resourceVersion that the object has had.
	version string
	// postStop is how long the hook after a task may take, at most.
	postStop time.Duration

	mu      sync.Mutex // guards the fields below
	records map[int32]*record
	// followers by shard, and those that were told to end and have not yet.
	followers map[int32]*following
	leaving   map[*following]struct{}
	// ready are the pods that are Ready, as last seen.
	ready map[types.UID]bool
	// stops by pod.
	stops   map[types.UID]*stop
	dropped bool
}

// following is the goroutine of a follower.
type following struct {
	pod    types.UID
	cancel context.CancelFunc
	done   chan struct{}
}

// stop is the ending of the tasks of one pod.
type stop struct {
	pod     string
	cancel  context.CancelFunc
	outcome shardtask.Stopping
}

// jobs holds the jobs by name. The zero value is ready to use.
type jobs struct {
	mu     sync.Mutex // guards byName
	byName map[types.NamespacedName]*job
}

// of returns the job of a BatchSandbox, and drops one of an earlier object of its
// name. An object that is itself the earlier one, as a caller with an old copy may bring
// it, gets a job that nobody else sees.
func (j *jobs) of(bs *v1alpha1.BatchSandbox) *job {
	name := types.NamespacedName{Namespace: bs.Namespace, Name: bs.Name}
	j.mu.Lock()
	defer j.mu.Unlock()
	found := j.byName[name]
	if found != nil && found.uid == bs.UID {
		return found
	}
	fresh := &job{
		name: name, uid: bs.UID, version: bs.ResourceVersion, postStop: shardtask.PostStopTime(bs), records: seed(bs),
		followers: map[int32]*following{}, leaving: map[*following]struct{}{},
		ready: map[types.UID]bool{}, stops: map[types.UID]*stop{},
	}
	if found != nil {
		if apiwrite.Later(found.version, bs.ResourceVersion) {
			return fresh
		}
		found.drop()
	}
	if j.byName == nil {
		j.byName = map[types.NamespacedName]*job{}
	}
	j.byName[name] = fresh
	return fresh
}

// find returns the job of a BatchSandbox if there is one.
func (j *jobs) find(bs *v1alpha1.BatchSandbox) *job {
	j.mu.Lock()
	defer j.mu.Unlock()
	found := j.byName[types.NamespacedName{Namespace: bs.Namespace, Name: bs.Name}]
	if found == nil || found.uid != bs.UID {
		return nil
	}
	return found
}

// drop forgets the job of that name and returns the pods that it knew.
func (j *jobs) drop(name types.NamespacedName) []types.UID {
	j.mu.Lock()
	defer j.mu.Unlock()
	found := j.byName[name]
	if found == nil {
		return nil
	}
	delete(j.byName, name)
	return found.drop()
}

// drop ends everything that goes on for the job and returns the pods that it knew.
func (j *job) drop() []types.UID {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.dropped = true
	var pods []types.UID
	for _, rec := range j.records {
		if rec.pod != "" {
			pods = append(pods, rec.pod)
		}
	}
	for _, f := range j.followers {
		f.cancel()
	}
	for _, s := range j.stops {
		s.cancel()
	}
	return pods
}

// unfollow ends the follower of a shard, without waiting for it. The lock is held.
func (j *job) unfollow(shard int32) {
	if f := j.followers[shard]; f != nil {
		f.cancel()
		delete(j.followers, shard)
		j.leaving[f] = struct{}{}
	}
}

// sandboxEnded fails the task of a sandbox that has ended before it. A result that only
// its executor could still confirm stands. The lock is held.
func (j *job) sandboxEnded(s sandbox) {
	j.unfollow(s.shard)
	rec := j.records[s.shard]
	if rec == nil || rec.pod != s.uid {
		rec = &record{pod: s.uid, podName: s.pod}
		j.records[s.shard] = rec
	}
	rec.stale, rec.unknown, rec.over = false, false, true
	if before := *rec; !rec.ended() {
		rec.fail(v1alpha1.ReasonSandboxEnded, "the containers of the sandbox finished before the task")
		countChange(&before, rec)
	}
}

// left notes that the follower of a shard has ended, and says whether it was the last.
func (j *job) left(shard int32, f *following) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	delete(j.leaving, f)
	if j.followers[shard] == f {
		delete(j.followers, shard)
	}
	return len(j.followers) == 0 && !j.dropped
}

// update changes the record of a shard while it is that of the pod and the pod has not
// ended, and says whether that was so. A follower that was told to end may still have an
// answer in its hands.
func (j *job) update(shard int32, pod types.UID, change func(*record)) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	rec := j.records[shard]
	if rec == nil || rec.pod != pod || rec.over || j.dropped {
		return false
	}
	change(rec)
	return true
}

func (j *job) isReady(pod types.UID) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.ready[pod]
}

func (j *job) report(replicas int32) shardtask.Report {
	j.mu.Lock()
	defer j.mu.Unlock()
	return report(j.records, replicas)
}
