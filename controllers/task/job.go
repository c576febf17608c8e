package task

import (
	"context"
	"sync"

	"k8s.io/apimachinery/pkg/types"

	"github.com/opensandbox/operator/api/v1alpha1"
	"github.com/opensandbox/operator/controllers/taskreport"
)

// job is what is known of the tasks of one BatchSandbox.
type job struct {
	name types.NamespacedName
	uid  types.UID

	mu      sync.Mutex // guards the fields below
	records map[int32]*known
	// followers by shard.
	followers map[int32]*follower
	// ready are the pods that are Ready, as last seen.
	ready map[types.UID]bool
	// stops by pod.
	stops   map[types.UID]*stop
	dropped bool
}

// follower is the goroutine that follows one executor.
type follower struct {
	pod    types.UID
	cancel context.CancelFunc
	done   chan struct{}
}

// stop is the ending of the tasks of one pod.
type stop struct {
	pod     string
	cancel  context.CancelFunc
	outcome taskreport.Stopping
}

// jobs holds the jobs by name. The zero value is ready to use.
type jobs struct {
	mu     sync.Mutex // guards byName
	byName map[types.NamespacedName]*job
}

// of returns the job of a BatchSandbox, and drops one of an earlier object of its name.
func (j *jobs) of(bs *v1alpha1.BatchSandbox) *job {
	name := types.NamespacedName{Namespace: bs.Namespace, Name: bs.Name}
	j.mu.Lock()
	defer j.mu.Unlock()
	found := j.byName[name]
	if found != nil && found.uid == bs.UID {
		return found
	}
	if found != nil {
		found.drop()
	}
	if j.byName == nil {
		j.byName = map[types.NamespacedName]*job{}
	}
	fresh := &job{
		name: name, uid: bs.UID, records: seed(bs), followers: map[int32]*follower{},
		ready: map[types.UID]bool{}, stops: map[types.UID]*stop{},
	}
	j.byName[name] = fresh
	return fresh
}

// drop forgets the job of that name.
func (j *jobs) drop(name types.NamespacedName) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if found := j.byName[name]; found != nil {
		found.drop()
		delete(j.byName, name)
	}
}

// drop ends everything that goes on for the job.
func (j *job) drop() {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.dropped = true
	for _, f := range j.followers {
		f.cancel()
	}
	for _, s := range j.stops {
		s.cancel()
	}
}

// unfollow ends the follower of a shard, without waiting for it. The lock is held.
func (j *job) unfollow(shard int32) {
	if f := j.followers[shard]; f != nil {
		f.cancel()
		delete(j.followers, shard)
	}
}

// update changes the record of a shard while it is that of the pod, and says whether
// it was.
func (j *job) update(shard int32, pod types.UID, change func(*known)) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	k := j.records[shard]
	if k == nil || k.pod != pod || j.dropped {
		return false
	}
	change(k)
	return true
}

func (j *job) isReady(pod types.UID) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.ready[pod]
}

func (j *job) report(replicas int32) taskreport.Report {
	j.mu.Lock()
	defer j.mu.Unlock()
	return report(j.records, replicas)
}
