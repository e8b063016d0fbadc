package gormsessions_test

import (
	"testing"

	"github.com/gormsessions/gormsessions/internal/conformance"
)

// TestConformance runs the one suite on every database, and under every way to
// set GORM up that it must not depend on.
func TestConformance(t *testing.T) {
	for _, d := range []conformance.Database{
		conformance.SQLiteFile(), conformance.SQLiteMemory(), conformance.PostgreSQL(), conformance.MariaDB(),
	} {
		t.Run(d.Name, func(t *testing.T) {
			for _, v := range conformance.Variants(d) {
				t.Run(v.Name, func(t *testing.T) {
					t.Parallel()
					conformance.Run(t, d, v)
				})
			}
		})
	}
}
