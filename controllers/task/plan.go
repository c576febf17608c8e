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
	// missing says why the pod has no task executor that the operator can talk to.
	missing string
	// ended: the pod's containers finished by themselves; nothing runs in it any more.
	ended bool
}

// plan says what to change so that the task of every shard runs once in its sandbox.
type plan struct {
	// follow are sandboxes whose executor is to be told its task and then followed.
	follow []sandbox
	// reset are shards whose task waits: their sandbox is lost, or has no executor.
	reset []int32
	// missing are the shards of them whose sandbox has no executor.
	missing []sandbox
	// ended are sandboxes that have ended, and whose task has no result yet.
	ended []sandbox
	// again are the shards whose task had begun in a sandbox that is lost.
	again []int32
	// drop are shards that are no longer asked for.
	drop []int32
}

// decide compares the sandboxes of the shards 0 to replicas-1 with what is known of
// their tasks. A result of a shard that is released is for good; any other one is
// good for the sandbox it came from. That of a record without a sandbox, read from
// the status, is shown until the sandbox's executor has said whether it is its own.
func decide(records map[int32]*record, sandboxes map[int32]sandbox, replicas int32, release bool) plan {
	var p plan
	for shard := range replicas {
		s, there := sandboxes[shard]
		if !there {
			p.decideLost(shard, records[shard], release)
			continue
		}
		p.decideHeld(shard, records[shard], s, release)
	}
	for shard := range records {
		if shard >= replicas {
			p.drop = append(p.drop, shard)
		}
	}
	return p
}

// decideLost is about a shard without a sandbox.
func (p *plan) decideLost(shard int32, rec *record, release bool) {
	if rec == nil || release && rec.ended() {
		return
	}
	p.reset = append(p.reset, shard)
	p.noteAgain(shard, rec)
}

// decideHeld is about a shard with a sandbox.
func (p *plan) decideHeld(shard int32, rec *record, s sandbox, release bool) {
	switch {
	case rec != nil && rec.ended() && (release || s.ended && rec.pod == ""):
		// Of a sandbox that has ended, what the status says cannot be confirmed any more.
		return
	case s.ended:
		if rec == nil || rec.pod != s.uid || rec.stale || !rec.ended() {
			p.ended = append(p.ended, s)
		}
		return
	case rec != nil && rec.pod == s.uid:
		return
	case s.missing != "":
		p.missing = append(p.missing, s)
		p.reset = append(p.reset, shard)
	case s.ready:
		p.follow = append(p.follow, s)
	case rec != nil && (rec.pod != "" || rec.missing != ""):
		p.reset = append(p.reset, shard)
	default:
		// Not ready yet: what the status said stands until then.
	}
	p.noteAgain(shard, rec)
}

func (p *plan) noteAgain(shard int32, rec *record) {
	if rec != nil && rec.pod != "" && rec.begun() {
		p.again = append(p.again, shard)
	}
}
