package gormsessions_test

import (
	"testing"
	"time"

	"github.com/gormsessions/gormsessions"
)

// TestMySQLServers stands in for servers that a test machine seldom has: MySQL
// knows no uuid type, and MariaDB one from 10.7 on.
func TestMySQLServers(t *testing.T) {
	for version, want := range map[string]bool{
		"8.0.36": false, "8.4.0": false, "9.1.0-log": false, "5.7.44": false, "": false,
		"10.6.18-MariaDB": false, "10.7.1-MariaDB": true, "10.11.6-MariaDB-0+deb12u1": true, "11.4.2-MariaDB": true,
	} {
		if got := gormsessions.HasUUID(version); got != want {
			t.Errorf("%q: got %v, want %v", version, got, want)
		}
	}
}

// TestMySQLSkipLocked: MariaDB leaves out locked rows from 10.6 on, MySQL from 8.0.
func TestMySQLSkipLocked(t *testing.T) {
	for version, want := range map[string]bool{
		"8.0.36": true, "9.1.0-log": true, "5.7.44": false, "": false, "10.5.27-MariaDB": false, "10.6.18-MariaDB": true, "11.4.2-MariaDB": true,
	} {
		if got := gormsessions.HasSkipLocked(version); got != want {
			t.Errorf("%q: got %v, want %v", version, got, want)
		}
	}
}

func TestClocksChange(t *testing.T) {
	for name, want := range map[string]bool{"UTC": false, "Asia/Shanghai": false, "America/New_York": true, "Australia/Sydney": true} {
		zone, err := time.LoadLocation(name)
		if err != nil {
			t.Skipf("no time zones on this machine: %v", err)
		}
		if got := gormsessions.ClocksChange(zone); got != want {
			t.Errorf("%s: got %v, want %v", name, got, want)
		}
	}
}
