// The program of the image of the operator's scorecard tests. The scorecard calls it
// with the name of one test, and reads from its output how that went.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"time"

	"github.com/go-logr/logr"
	scorecardv1alpha3 "github.com/operator-framework/api/pkg/apis/scorecard/v1alpha3"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/opensandbox/operator/api/v1alpha1"
	"github.com/opensandbox/operator/scorecard/checks"
)

// bundleRoot is where the scorecard puts the bundle.
const bundleRoot = "/bundle"

func main() {
	name := ""
	if len(os.Args) > 1 {
		name = os.Args[1]
	}
	result := scorecardv1alpha3.TestResult{Name: name, State: scorecardv1alpha3.PassState}
	if err := run(name); err != nil {
		result.State, result.Errors = scorecardv1alpha3.FailState, []string{err.Error()}
	}
	status := scorecardv1alpha3.TestStatus{Results: []scorecardv1alpha3.TestResult{result}}
	if err := json.NewEncoder(os.Stdout).Encode(status); err != nil {
		fmt.Fprintln(os.Stderr, "writing the result:", err)
		os.Exit(1)
	}
}

func run(name string) (err error) {
	check, known := checks.All[name]
	if !known {
		return fmt.Errorf("there is no test %q", name)
	}
	if err := v1alpha1.AddToScheme(clientgoscheme.Scheme); err != nil {
		return fmt.Errorf("registering the API types: %w", err)
	}
	config, err := ctrl.GetConfig()
	if err != nil {
		return fmt.Errorf("finding the cluster: %w", err)
	}
	// Everything that the pod writes is read as the result.
	config.WarningHandler = rest.NoWarnings{}
	ctrl.SetLogger(logr.Discard())
	api, err := client.New(config, client.Options{Scheme: clientgoscheme.Scheme})
	if err != nil {
		return fmt.Errorf("connecting to the cluster: %w", err)
	}
	c := &checks.Check{Client: api, Namespace: os.Getenv("SCORECARD_NAMESPACE"), Bundle: bundleRoot, Name: fmt.Sprintf("%s-%d", name, time.Now().Unix()), Patience: checks.Patience}
	ctx := context.Background()
	defer func() {
		if cleaned := c.Clean(ctx); err == nil {
			err = cleaned
		}
	}()
	return check(c, ctx)
}
