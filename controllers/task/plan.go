package task

import (
	"k8s.io/apimachinery/pkg/types"
)

// sandbox is the pod of a shard, as the cache shows it.
type sandbox struct {
	shard int32
	pod   string
	uid   types.UID
	// ready: the pod is Ready.
	ready bool
	// executor: the pod has a task executor that the operator can talk to.
	executor bool
}

// plan says what to change so that the task of every shard runs once in its sandbox.
type plan struct {
	// follow are sandboxes whose executor is to be told its task and then followed.
	follow []sandbox
	// reset are shards whose task waits: their sandbox is lost, or has no executor.
	reset []int32
	// missing are the shards of them whose sandbox has no executor.
	missing []sandbox
	// again are the shards whose task had begun in a sandbox that is lost.
	again []int32
	// drop are shards that are no longer asked for.
	drop []int32
}

// decide compares the sandboxes of the shards 0 to replicas-1 with what is known of
// their tasks. A result of a shard that is released is for good; any other one is
// good for the sandbox it came from. That of a record without a sandbox, read from
// the status, is shown until the sandbox' executor has said whether it is its.
func decide(records map[int32]*known, sandboxes map[int32]sandbox, replicas int32, release bool) plan {
	var p plan
	for shard := range replicas {
		k := records[shard]
		if release && k != nil && k.ended() {
			continue
		}
		s, there := sandboxes[shard]
		follows := k != nil && k.pod != "" && there && k.pod == s.uid
		switch {
		case follows:
		case there && s.executor && s.ready:
			p.follow = append(p.follow, s)
		case there && s.executor && k != nil && k.pod == "" && !k.missing:
			// Not ready yet: what the status said stands until then.
		case there && !s.executor:
			p.missing = append(p.missing, s)
			p.reset = append(p.reset, shard)
		case k != nil:
			p.reset = append(p.reset, shard)
		}
		if !follows && k != nil && k.pod != "" && k.begun() {
			p.again = append(p.again, shard)
		}
	}
	for shard := range records {
		if shard >= replicas {
			p.drop = append(p.drop, shard)
		}
	}
	return p
}
