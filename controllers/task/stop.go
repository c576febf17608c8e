package task

import (
	"context"
	"errors"
	"maps"
	"time"

	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/sets"

	"github.com/opensandbox/operator/api/v1alpha1"
	"github.com/opensandbox/operator/controllers/shardtask"
	executorapi "github.com/opensandbox/operator/executor/api"
	executorclient "github.com/opensandbox/operator/executor/client"
)

const (
	// resetWait is how long a reset may take: the grace of the tasks, and what
	// killing them takes.
	resetWait = executorapi.DefaultGraceSeconds*time.Second + 10*time.Second
	// unreachableFor is how long an executor may not answer before its sandbox is
	// given up.
	unreachableFor = 10 * time.Second
	// stopPatience is how long an executor may answer without ending its tasks.
	stopPatience = time.Minute
)

// Stop ends all tasks of a pod that the BatchSandbox holds or has given up, and says
// how far that has come. Where restart says so and the pod allows it, all containers
// are restarted in place after it. It returns at once; OnChange says when to ask again.
func (r *Reconciler) Stop(bs *v1alpha1.BatchSandbox, pod string, uid types.UID, restart bool) shardtask.Stopping {
	if uid == "" {
		return shardtask.Unstoppable // nobody has seen it yet
	}
	j := r.jobs.of(bs)
	j.mu.Lock()
	defer j.mu.Unlock()
	if s := j.stops[uid]; s != nil {
		return s.outcome
	}
	for shard, f := range j.followers {
		if f.pod == uid {
			j.unfollow(shard)
		}
	}
	var leaving []*following
	for f := range j.leaving {
		if f.pod == uid {
			leaving = append(leaving, f)
		}
	}
	ctx, cancel := context.WithCancel(r.ctx)
	s := &stop{pod: pod, cancel: cancel}
	j.stops[uid] = s
	r.work.Go(func() {
		defer cancel()
		for _, f := range leaving {
			<-f.done // so that nothing starts after the end
		}
		outcome := r.end(ctx, j.name.Namespace, pod, uid, restart, j.postStop)
		if ctx.Err() != nil {
			return
		}
		stops.WithLabelValues(stopResults[outcome]).Inc()
		j.finishStop(s, uid, outcome)
		r.OnChange(j.name)
	})
	return s.outcome
}

// Freed forgets pods that were stopped: they are not the BatchSandbox's any more, and
// may become so again. Results that are for good stay.
func (r *Reconciler) Freed(bs *v1alpha1.BatchSandbox, pods []string) {
	j := r.jobs.find(bs)
	if j == nil {
		return
	}
	freed := sets.New(pods...)
	release := bs.Spec.TaskResourcePolicyWhenCompleted == v1alpha1.TaskResourceRelease
	j.mu.Lock()
	defer j.mu.Unlock()
	maps.DeleteFunc(j.stops, func(_ types.UID, s *stop) bool { return freed.Has(s.pod) })
	maps.DeleteFunc(j.records, func(_ int32, rec *record) bool {
		return rec.pod != "" && freed.Has(rec.podName) && (!release || !rec.ended())
	})
}

func (j *job) finishStop(s *stop, uid types.UID, outcome shardtask.Stopping) {
	j.mu.Lock()
	defer j.mu.Unlock()
	s.outcome = outcome
	for _, rec := range j.records {
		if rec.pod == uid {
			rec.stopped = true
		}
	}
}

// end resets the executor of a pod until it has ended its tasks or is given up. The hook that
// runs after a task has its time beside.
func (r *Reconciler) end(ctx context.Context, namespace, pod string, uid types.UID, restart bool, postStop time.Duration) shardtask.Stopping {
	var before *containers
	if restart {
		before = r.restartable(ctx, namespace, pod, uid)
	}
	request := executorapi.ResetRequest{Restart: before != nil}
	pauses := follower{Reconciler: r}
	began := r.Clock.Now()
	answered := began
	for {
		err := r.reset(ctx, namespace, pod, uid, request, resetWait+postStop)
		now := r.Clock.Now()
		switch {
		case errors.Is(err, errNotFresh), executorclient.IsUnauthorized(err):
			answered = now // nothing was done
			if before != nil {
				before = r.restartable(ctx, namespace, pod, uid)
				request.Restart = before != nil
			}
		case err == nil, errors.Is(err, errGone), errors.Is(err, errNoExecutor):
			r.Executors.Forget(string(uid))
			if err == nil && before != nil && r.restarted(ctx, namespace, pod, uid, before) {
				return shardtask.Restarted
			}
			return shardtask.Stopped
		case errors.Is(err, errEarlier), executorclient.Reason(err) == executorapi.ProblemProcessesRemain:
			return shardtask.Unstoppable
		default:
			// A restart that this or an earlier leader has asked for may be on its way:
			// another one could come when the sandbox is handed on.
			before, request.Restart = nil, false
			if executorclient.Reason(err) != "" {
				answered = now
			}
		}
		if now.Sub(answered) >= unreachableFor || now.Sub(began) >= stopPatience+postStop {
			return shardtask.Unstoppable
		}
		if !pauses.sleep(ctx, pauses.nextPause()) {
			return shardtask.StillStopping
		}
	}
}

// errNotFresh says that another leader may have handed the pod on.
var errNotFresh = errors.New("not resetting an executor")

func (r *Reconciler) reset(ctx context.Context, namespace, pod string, uid types.UID, request executorapi.ResetRequest, wait time.Duration) error {
	target, _, err := r.target(ctx, namespace, pod, uid)
	if err != nil {
		return err
	}
	if err := r.Fresh(); err != nil {
		return errors.Join(errNotFresh, err)
	}
	_, err = r.Executors.Reset(ctx, target, request, wait)
	return err
}
