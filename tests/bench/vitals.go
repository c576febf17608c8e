package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/prometheus/procfs"
	"k8s.io/apimachinery/pkg/util/wait"
)

const mebi = 1 << 20

// vitals are what a replica of the operator says of itself.
type vitals struct {
	// Memory in MiB: what the process has, the most that it has had, and what Go's heap held
	// after the last garbage collection.
	resident, peak, heap float64
	goroutines           float64
	// queued are the keys that wait in the work queues.
	queued float64
	// cpu are seconds since the process was started.
	cpu float64
}

func (r *replica) vitals(ctx context.Context) (v vitals, err error) {
	f, err := readFamilies(ctx, "http://"+r.metrics+"/metrics")
	if err != nil {
		return v, fmt.Errorf("reading the metrics of replica %s: %w", r.name, err)
	}
	var errs [5]error
	v.resident, errs[0] = f.sum("process_resident_memory_bytes")
	v.heap, errs[1] = f.sum("go_gc_heap_live_bytes")
	v.goroutines, errs[2] = f.sum("go_goroutines")
	v.cpu, errs[3] = f.sum("process_cpu_seconds_total")
	v.resident, v.heap = v.resident/mebi, v.heap/mebi
	v.peak, errs[4] = peak(r.command.Process.Pid)
	f.each("workqueue_depth", func(_ map[string]string, depth float64) { v.queued += depth })
	return v, errors.Join(errs[:]...)
}

// peak is the most memory that a process has had, in MiB.
func peak(pid int) (float64, error) {
	process, err := procfs.NewProc(pid)
	if err != nil {
		return 0, err
	}
	status, err := process.NewStatus()
	return float64(status.VmHWM) / mebi, err
}

// untilQuiet waits until nothing waits in the work queues of the replica.
func (r *replica) untilQuiet(ctx context.Context) error {
	return wait.PollUntilContextTimeout(ctx, time.Second, fillPatience, true, func(ctx context.Context) (bool, error) {
		v, err := r.vitals(ctx)
		return err == nil && v.queued == 0, err
	})
}

// idling is what the cluster uses when nobody wants anything.
type idling struct {
	leader, standby vitals
	// cpu are thousandths of a CPU, memory MiB, by process.
	cpu, memory map[string]float64
}

// atRest watches the pair for that long.
func (s *scale) atRest(ctx context.Context) (r idling, err error) {
	leader, standby, err := s.pair(ctx)
	if err == nil {
		err = leader.untilQuiet(ctx)
	}
	if err != nil {
		return r, err
	}
	before, start := map[string]float64{}, time.Now()
	for i, into := range []*map[string]float64{&before, &r.cpu} {
		if i > 0 {
			if err := sleep(ctx, s.o.rest); err != nil {
				return r, err
			}
		}
		if *into, err = s.cluster.cpu(ctx); err != nil {
			return r, err
		}
		if r.leader, err = leader.vitals(ctx); err != nil {
			return r, err
		}
		if r.standby, err = standby.vitals(ctx); err != nil {
			return r, err
		}
	}
	lasted := time.Since(start).Seconds()
	for name := range r.cpu {
		r.cpu[name] = (r.cpu[name] - before[name]) / lasted * 1000
	}
	if r.memory, err = s.cluster.memory(ctx); err != nil {
		return r, err
	}
	for name := range r.memory {
		r.memory[name] /= mebi
	}
	return r, nil
}
