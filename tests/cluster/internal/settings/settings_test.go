package settings

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestSlotsShareNothing(t *testing.T) {
	seen := map[string]int{}
	for slot := 0; slot <= MaxSlot; slot++ {
		c := &Cluster{Choice: Choice{Slot: slot}}
		for _, value := range []string{c.Name(), c.RunDir(), c.Subnet(), c.PodSubnet(), c.ServiceSubnet(), c.HostIP(), c.NodeIP()} {
			if other, ok := seen[value]; ok {
				t.Errorf("slots %d and %d both have %s", other, slot, value)
			}
			seen[value] = slot
		}
		if last, next := c.Port(PortEtcdMetrics), (&Cluster{Choice: Choice{Slot: slot + 1}}).Port(0); last >= next {
			t.Errorf("slot %d has port %d, the next slot begins at %d", slot, last, next)
		}
	}
}

func TestAddressesAreWhereTheyBelong(t *testing.T) {
	c := &Cluster{Choice: Choice{Slot: 4}}
	for address, subnet := range map[string]string{
		c.KubernetesServiceIP(): c.ServiceSubnet(),
		c.DNSServiceIP():        c.ServiceSubnet(),
		c.HostIP():              c.Subnet(),
		c.NodeIP():              c.Subnet(),
	} {
		_, network, err := net.ParseCIDR(subnet)
		if err != nil {
			t.Fatal(err)
		}
		if !network.Contains(net.ParseIP(address)) {
			t.Errorf("%s is not in %s", address, subnet)
		}
	}
}

func TestLocate(t *testing.T) {
	repo := t.TempDir()
	inside := filepath.Join(repo, "tests", "cluster")
	if err := os.MkdirAll(inside, 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := Locate(inside, ""); err == nil || !strings.Contains(err.Error(), "not inside the operator's source tree") {
		t.Errorf("without a go.mod: got %v, want an explanation", err)
	}
	if err := os.WriteFile(filepath.Join(inside, "go.mod"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name, flag, env, want string
	}{
		{name: "the default is at the root of the source tree", want: filepath.Join(repo, ".cluster")},
		{name: "the environment decides", env: "/env", want: "/env"},
		{name: "the flag wins", env: "/env", flag: "/flag", want: "/flag"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Setenv(EnvState, test.env)
			t.Setenv(EnvBin, "")
			c, err := Locate(inside, test.flag)
			if err != nil {
				t.Fatal(err)
			}
			if c.State != test.want || c.Bin != filepath.Join(test.want, "bin") || c.Repo != repo {
				t.Errorf("got state %s, bin %s, repo %s, want state %s", c.State, c.Bin, c.Repo, test.want)
			}
		})
	}
	if _, err := Locate(inside, "/"+strings.Repeat("x", maxStatePath)); err == nil || !strings.Contains(err.Error(), "shorter one") {
		t.Errorf("a long path: got %v, want advice", err)
	}
}

func TestChoiceSurvives(t *testing.T) {
	c := &Cluster{State: t.TempDir()}
	if found, err := c.Load(); found || err != nil {
		t.Fatalf("before Save: got %v, %v, want nothing found", found, err)
	}
	c.Choice = Choice{Slot: 3, ControlPlaneOnly: true, FakeNodes: 7, Fsync: true, Kubernetes: "1.30", GVisor: true}
	if err := c.Save(); err != nil {
		t.Fatal(err)
	}
	again := &Cluster{State: c.State}
	if found, err := again.Load(); !found || err != nil || again.Choice != c.Choice {
		t.Errorf("got %v, %v, %+v, want %+v", found, err, again.Choice, c.Choice)
	}
}

func TestARecordThatIsBeingWrittenCanBeRead(t *testing.T) {
	c := &Cluster{State: t.TempDir()}
	if err := c.Save(); err != nil {
		t.Fatal(err)
	}
	saving := make(chan error)
	go func() {
		for range 2000 {
			if err := c.Save(); err != nil {
				saving <- err
				return
			}
		}
		close(saving)
	}()
	for {
		select {
		case err := <-saving:
			if err != nil {
				t.Fatal(err)
			}
			return
		default:
		}
		reader := &Cluster{State: c.State}
		if found, err := reader.Load(); !found || err != nil {
			t.Fatalf("got %v, %v, want the record", found, err)
		}
	}
}
