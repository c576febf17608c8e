package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/opensandbox/operator/api/v1alpha1"
	"github.com/opensandbox/operator/tests/bench/results"
)

const severalPool = "several"

func severalTable(o *scaleOptions) results.Table {
	return results.Table{
		ID: "scale-several", Title: "Several operators over namespaces of their own",
		Note: fmt.Sprintf("%d single sandboxes are asked for at once in each of two namespaces, %d times with each number of operators, in turns.\n"+
			"Last: when the last of all is delivered, the median. CPU: of all operators for each sandbox, until it is given back.", o.severalSandboxes, o.severalBursts),
		Columns: []results.Column{
			{Name: "operators"}, {Name: "namespaces"}, {Name: "sandboxes"},
			{Name: "last", Unit: "ms", Digits: 0}, {Name: "a second", Digits: 1}, {Name: "best a second", Digits: 1},
			{Name: "operators' CPU", Unit: "ms", Digits: 2},
		},
	}
}

// several measures one operator over two namespaces, and two over one each. Each has a namespace
// of its own, with its lease, and permissions in the namespaces that it watches alone.
func (s *scale) several(ctx context.Context) (tables []results.Table, err error) {
	table := severalTable(s.o)
	tables = []results.Table{table}
	if err := s.operator.stop(); err != nil {
		return tables, err
	}
	var watched []*bench
	var operators []identity
	defer func() {
		// What is held is given back before the operators' permissions go.
		err = errors.Join(err, s.operator.stop(), s.endSeveral(context.WithoutCancel(ctx), watched, operators))
	}()
	for range 2 {
		b := *s.bench
		b.payloads = map[string][]v1alpha1.BatchSandbox{}
		if b.namespace, err = s.namespaceNamed(ctx, "bench-several-"); err != nil {
			return tables, err
		}
		watched = append(watched, &b)
	}
	namespaces := []string{watched[0].namespace, watched[1].namespace}
	for range 2 {
		as, err := s.newIdentity(ctx, namespaces)
		if err != nil {
			return tables, err
		}
		operators = append(operators, as)
	}
	shares := [][]string{{strings.Join(namespaces, ",")}, namespaces}
	var last, cpu [2][]float64
	for range s.o.severalBursts {
		for i, share := range shares {
			took, spent, err := s.burstOf(ctx, watched, operators, share)
			if err != nil {
				return tables, fmt.Errorf("%d operators: %w", len(share), err)
			}
			last[i], cpu[i] = append(last[i], ms(took)), append(cpu[i], spent)
		}
	}
	all := float64(2 * s.o.severalSandboxes)
	for i, share := range shares {
		table.Add(nil, float64(len(share)), float64(len(namespaces)), all,
			quantile(last[i], 0.5), all/quantile(last[i], 0.5)*1000, all/slices.Min(last[i])*1000, quantile(cpu[i], 0.5))
	}
	fmt.Fprintln(os.Stderr, "measured several operators")
	return []results.Table{table}, nil
}

// burstOf starts an operator for each share of the namespaces, has all of them hand out at once and
// stops them again. It returns when the last sandbox was delivered, and the milliseconds of CPU that
// the operators have spent on each.
func (s *scale) burstOf(ctx context.Context, watched []*bench, operators []identity, shares []string) (took time.Duration, cpu float64, err error) {
	for i, share := range shares {
		r, err := s.start(ctx, operators[i], "--watch-namespaces="+share, "--shutdown-delay=0")
		if err != nil {
			return 0, 0, err
		}
		if _, err := r.untilSaid(ctx, tookOver, roundPatience); err != nil {
			return 0, 0, err
		}
	}
	for _, b := range watched {
		if err := b.fillQuietly(ctx, poolSize{name: severalPool, size: int32(s.o.severalSandboxes)}); err != nil {
			return 0, 0, err
		}
	}
	before, err := s.operatorCPU(ctx)
	if err != nil {
		return 0, 0, err
	}
	lasts := make([]time.Duration, len(watched))
	work, working := errgroup.WithContext(ctx)
	for i, b := range watched {
		work.Go(func() error {
			burst := scenario{name: severalPool, pool: severalPool, objects: s.o.severalSandboxes, replicas: 1}
			result, err := b.runOperator(working, burst, 0)
			if err == nil {
				lasts[i] = slices.Max(result.took)
			}
			return err
		})
	}
	if err := work.Wait(); err != nil {
		return 0, 0, err
	}
	after, err := s.operatorCPU(ctx)
	if err != nil {
		return 0, 0, err
	}
	sandboxes := float64(len(watched) * s.o.severalSandboxes)
	return slices.Max(lasts), (after - before) / sandboxes * 1000, s.operator.stop()
}

// operatorCPU is what all replicas have spent, in seconds.
func (s *scale) operatorCPU(ctx context.Context) (sum float64, err error) {
	for _, r := range s.operator.running {
		v, err := r.vitals(ctx)
		if err != nil {
			return 0, err
		}
		sum += v.cpu
	}
	return sum, nil
}

// fillQuietly makes a pool, if it is not there, and waits until it is full.
func (b *bench) fillQuietly(ctx context.Context, p poolSize) error {
	if err := b.api.Create(ctx, b.pool(p)); client.IgnoreAlreadyExists(err) != nil {
		return fmt.Errorf("making pool %s: %w", p.name, err)
	}
	return b.untilIdle(ctx, p.name, fillPatience)
}

func (b *bench) namespaceNamed(ctx context.Context, prefix string) (string, error) {
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: prefix}}
	if err := b.api.Create(ctx, ns); err != nil {
		return "", fmt.Errorf("making a namespace: %w", err)
	}
	return ns.Name, nil
}

// Names of what 'make deploy' deploys.
const (
	managerRole      = "opensandbox-manager-role"
	ownNamespaceRole = "opensandbox-own-namespace-role"
)

// newIdentity makes a namespace for an operator, with a service account that may do there what
// the deployed operator may in its own, and in the watched namespaces what it may everywhere.
func (b *bench) newIdentity(ctx context.Context, watched []string) (as identity, err error) {
	as.Name = deployedIdentity.Name
	if as.Namespace, err = b.namespaceNamed(ctx, "bench-operator-"); err != nil {
		return as, err
	}
	deployed := &rbacv1.Role{}
	if err := b.api.Get(ctx, client.ObjectKey{Namespace: deployedIdentity.Namespace, Name: ownNamespaceRole}, deployed); err != nil {
		return as, fmt.Errorf("reading the operator's role: %w", err)
	}
	objects := []client.Object{
		&corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: as.Namespace, Name: as.Name}},
		&rbacv1.Role{ObjectMeta: metav1.ObjectMeta{Namespace: as.Namespace, Name: ownNamespaceRole}, Rules: deployed.Rules},
		roleBinding(as, as.Namespace, "Role", ownNamespaceRole),
	}
	for _, namespace := range watched {
		objects = append(objects, roleBinding(as, namespace, "ClusterRole", managerRole))
	}
	for _, object := range objects {
		if err := b.api.Create(ctx, object); err != nil {
			return as, fmt.Errorf("giving an operator its permissions: %w", err)
		}
	}
	return as, nil
}

// endSeveral takes away what was made. The pools go last of all, by the deployed operator.
func (s *scale) endSeveral(ctx context.Context, watched []*bench, operators []identity) error {
	var errs []error
	for _, b := range watched {
		errs = append(errs, s.api.DeleteAllOf(ctx, &v1alpha1.Pool{}, client.InNamespace(b.namespace)),
			s.api.Delete(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: b.namespace}}))
	}
	for _, as := range operators {
		errs = append(errs, s.api.Delete(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: as.Namespace}}))
	}
	return errors.Join(errs...)
}
