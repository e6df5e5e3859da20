"""Widgets for JupyterLab: ask a policy, explorer, playground, training monitor, study board, calculator.

Each is one call. In an interactive notebook it returns a widget; in one that a program executes (papermill)
it returns the same view as HTML, which is stored in the notebook. All read the run store, so any process may
train the runs, and nothing is lost with the browser. Timers run on the kernel's event loop; they end with the
run that they watch, or with the widget.
"""

from zs_lib.ui.widgets.costs import Calculator, calculator
from zs_lib.ui.widgets.explorer import Explorer, explore
from zs_lib.ui.widgets.queries import Playground, playground
from zs_lib.ui.widgets.questions import Asker, ask
from zs_lib.ui.widgets.training import Monitor, StudyBoard, board, monitor
