package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/prometheus/procfs"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/opensandbox/operator/tests/bench/results"
)

// requestsMetric is the API server's own count of what it was asked, see
// https://kubernetes.io/docs/reference/instrumentation/metrics.
const requestsMetric = "apiserver_request_total"

// lease is that of the operator's leader.
var lease = client.ObjectKey{Namespace: deployment.Namespace, Name: "opensandbox-operator"}

// cost is what was spent since a moment in the past: requests to the API server, by verb and
// resource, and seconds of CPU, by process.
type cost struct {
	requests map[string]float64
	cpu      map[string]float64
}

// since returns what was spent between two readings, for each of so many sandboxes. Requests of
// which there is less than one for twenty sandboxes are left out: they come without a load, too.
func (c cost) since(before cost, sandboxes int) cost {
	return cost{requests: per(c.requests, before.requests, sandboxes, 0.05), cpu: per(c.cpu, before.cpu, sandboxes, 0)}
}

func per(now, before map[string]float64, sandboxes int, least float64) map[string]float64 {
	result := map[string]float64{}
	for name, value := range now {
		if each := (value - before[name]) / float64(sandboxes); each >= least {
			result[name] = each
		}
	}
	return result
}

// meter reads what is spent.
type meter struct {
	api  client.Reader
	rest rest.Interface
	// directory of the hermetic cluster: its processes are known by it.
	directory string
	// here is the operator where it runs on this machine; nil where the deployed one runs.
	here *standIn
}

func (b *bench) meter() *meter {
	return &meter{api: b.api, rest: b.discovery.RESTClient(), directory: results.ClusterDirectory(), here: b.here}
}

// read returns what was spent until now.
func (m *meter) read(ctx context.Context) (cost, error) {
	requests, err := m.requests(ctx)
	if err != nil {
		return cost{}, fmt.Errorf("reading %s of the API server: %w", requestsMetric, err)
	}
	cpu, err := m.cpu(ctx)
	if err != nil {
		return cost{}, fmt.Errorf("reading the CPU time of the cluster's processes: %w", err)
	}
	return cost{requests: requests, cpu: cpu}, nil
}

// families are all metrics of the API server.
func (m *meter) families(ctx context.Context) (families, error) {
	text, err := m.rest.Get().AbsPath("/metrics").DoRaw(ctx)
	if err != nil {
		return nil, err
	}
	return parseFamilies(bytes.NewReader(text))
}

func (m *meter) requests(ctx context.Context) (map[string]float64, error) {
	families, err := m.families(ctx)
	if err != nil {
		return nil, err
	}
	if families[requestsMetric] == nil {
		return nil, errors.New("there is no such metric")
	}
	sums := map[string]float64{}
	families.each(requestsMetric, func(labels map[string]string, value float64) { sums[requestName(labels)] += value })
	return sums, nil
}

// requestName is by what requests are told apart; the refused ones by their code, too.
func requestName(labels map[string]string) string {
	name := labels["verb"] + " " + cmp.Or(labels["resource"], "other")
	if sub := labels["subresource"]; sub != "" {
		name += "/" + sub
	}
	if code := labels["code"]; code >= "400" {
		name += " (" + code + ")"
	}
	return name
}

// cpu returns the seconds of CPU that each process of the cluster has taken.
func (m *meter) cpu(ctx context.Context) (map[string]float64, error) {
	return m.sum(ctx, func(s procfs.ProcStat) float64 { return s.CPUTime() })
}

// memory returns the bytes of memory that each process of the cluster has.
func (m *meter) memory(ctx context.Context) (map[string]float64, error) {
	return m.sum(ctx, func(s procfs.ProcStat) float64 { return float64(s.ResidentMemory()) })
}

// sum adds a number up over all processes of the same name.
func (m *meter) sum(ctx context.Context, of func(procfs.ProcStat) float64) (map[string]float64, error) {
	processes, err := m.processes(ctx)
	if err != nil {
		return nil, err
	}
	sums := map[string]float64{}
	for name, list := range processes {
		for _, process := range list {
			stat, err := process.Stat()
			if errors.Is(err, os.ErrNotExist) {
				continue // it has ended since
			}
			if err != nil {
				return nil, err
			}
			sums[name] += of(stat)
		}
	}
	return sums, nil
}

// processes returns those of the cluster by their names. The replicas of the operator are the
// leader and the standbys.
func (m *meter) processes(ctx context.Context) (map[string][]procfs.Proc, error) {
	replicas, err := m.replicas(ctx)
	if err != nil {
		return nil, err
	}
	all, err := procfs.AllProcs()
	if err != nil {
		return nil, err
	}
	named := map[string][]procfs.Proc{}
	for _, process := range all {
		if name := m.nameOf(process, replicas); name != "" {
			named[name] = append(named[name], process)
		}
	}
	return named, nil
}

// nameOf returns what a process of the cluster is called, and nothing for all others.
func (m *meter) nameOf(process procfs.Proc, replicas map[string]string) string {
	if m.here != nil {
		if name := m.here.nameOf(process.PID); name != "" {
			return name
		}
	}
	groups, err := process.Cgroups()
	if err != nil {
		return ""
	}
	for uid, name := range replicas {
		if slices.ContainsFunc(groups, func(g procfs.Cgroup) bool { return strings.Contains(g.Path, uid) }) {
			return name
		}
	}
	command, err := process.CmdLine()
	if err != nil || len(command) == 0 {
		return ""
	}
	for _, arg := range command[1:] {
		if strings.Contains(arg, m.directory+string(filepath.Separator)) {
			return filepath.Base(command[0])
		}
	}
	return ""
}

// replicas are the pods of the operator by UID, with their parts as names.
func (m *meter) replicas(ctx context.Context) (map[string]string, error) {
	var held coordinationv1.Lease
	if err := m.api.Get(ctx, lease, &held); err != nil {
		return nil, fmt.Errorf("reading the leader's lease: %w", err)
	}
	var pods corev1.PodList
	if err := m.api.List(ctx, &pods, client.InNamespace(deployment.Namespace), client.MatchingLabels{"control-plane": "controller-manager"}); err != nil {
		return nil, fmt.Errorf("listing the operator's pods: %w", err)
	}
	names := map[string]string{}
	for i := range pods.Items {
		pod := &pods.Items[i]
		names[string(pod.UID)] = ofStandby
		if holder := held.Spec.HolderIdentity; holder != nil && strings.HasPrefix(*holder, pod.Name+"_") {
			names[string(pod.UID)] = ofLeader
		}
	}
	return names, nil
}

// etcd returns all metrics of the cluster's etcd.
func (m *meter) etcd(ctx context.Context) (families, error) {
	processes, err := m.processes(ctx)
	if err != nil {
		return nil, err
	}
	for _, process := range processes["etcd"] {
		command, err := process.CmdLine()
		if err != nil {
			return nil, err
		}
		for _, arg := range command {
			if url, found := strings.CutPrefix(arg, "--listen-metrics-urls="); found {
				return readFamilies(ctx, url+"/metrics")
			}
		}
	}
	return nil, errors.New("etcd of the cluster does not say where its metrics are")
}
