// Package shardtask is about the tasks of a BatchSandbox, one for each shard: the task that
// its spec makes for a shard, what is known of the tasks, and how the status says that. It
// is pure. The task reconciler, the batchsandbox reconciler, which writes the status, the
// start of a leader and the webhook call it.
package shardtask

import (
	"slices"
	"strconv"
	"strings"

	"github.com/opensandbox/operator/api/v1alpha1"
)

// Report is what the task reconciler tells of the tasks of one BatchSandbox.
type Report struct {
	// Pending, Running and Unknown as in the status.
	Pending, Running, Unknown int32
	// Succeeded and Failed are the shards whose task has ended, in order.
	Succeeded, Failed []int32
	// FailedTasks are at most v1alpha1.MaxFailedTasks of the failed ones.
	FailedTasks []v1alpha1.FailedTask
	// Completed, Reason and Message are the condition TasksCompleted.
	Completed       bool
	Reason, Message string
}

// Stopping is how far the stopping of a sandbox's tasks has come.
type Stopping int

const (
	// StillStopping: wait; the batchsandbox reconciler is woken when that changes.
	StillStopping Stopping = iota
	// Stopped: no process of a task is left.
	Stopped
	// Restarted: no process of a task is left, and all containers are new and clean.
	Restarted
	// Unstoppable: the executor does not answer, or cannot end its tasks.
	Unstoppable
)

// Released are the shards that keep their result and get no sandbox any more, as
// the status has them.
func Released(bs *v1alpha1.BatchSandbox) map[int32]bool {
	if bs.Spec.TaskTemplate == nil || bs.Spec.TaskResourcePolicyWhenCompleted != v1alpha1.TaskResourceRelease {
		return nil
	}
	released := map[int32]bool{}
	for _, text := range []string{bs.Status.SucceededShards, bs.Status.FailedShards} {
		for _, shard := range ParseShards(text) {
			if shard < bs.DesiredReplicas() {
				released[shard] = true
			}
		}
	}
	return released
}

// FormatShards writes shards, which are in order, as a Job writes its completed
// indexes: "0-5,7".
func FormatShards(shards []int32) string {
	var text strings.Builder
	for i := 0; i < len(shards); {
		end := i
		for end+1 < len(shards) && shards[end+1] == shards[end]+1 {
			end++
		}
		if text.Len() > 0 {
			text.WriteByte(',')
		}
		text.WriteString(strconv.Itoa(int(shards[i])))
		if end > i {
			text.WriteString("-" + strconv.Itoa(int(shards[end])))
		}
		i = end + 1
	}
	return text.String()
}

// ParseShards reads what FormatShards wrote. What cannot be a shard is left out.
func ParseShards(text string) []int32 {
	var shards []int32
	for part := range strings.SplitSeq(text, ",") {
		first, last, ranged := strings.Cut(part, "-")
		if !ranged {
			last = first
		}
		from, err := strconv.ParseUint(first, 10, 31)
		to, err2 := strconv.ParseUint(last, 10, 31)
		if err != nil || err2 != nil {
			continue
		}
		for shard := from; shard <= to && shard < v1alpha1.MaxReplicas; shard++ {
			shards = append(shards, int32(shard))
		}
	}
	slices.Sort(shards)
	return slices.Compact(shards)
}
